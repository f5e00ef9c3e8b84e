"""`make_app`: the FastAPI application of a service.

Paths: `/v1/chat/completions`, `/v1/models`, `/v1/models/{name}`, `/health`, `/openapi.json`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from apr_plugin import __version__
from apr_plugin.harnesses.serve.answering import Answering
from apr_plugin.harnesses.serve.refused import Refused, malformed
from apr_plugin.harnesses.serve.request import ChatRequest
from apr_plugin.harnesses.serve.service import Service

_STATUSES = {
    400: "The request is malformed, or a file that it names can't be used.",
    401: "The API key is missing or wrong.",
    404: "There is no such model or path.",
    408: "The body did not arrive in time.",
    413: "The body or the files are too large.",
    415: "The Content-Type is not application/json.",
    421: "The server was called by a name that is not its own.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "Something went wrong in the server.",
    503: "The policy can't answer, or the server is stopping.",
    504: "The episode took too long; what it did is stored.",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, in the form of OpenAI's API."""

    error: ErrorDetail


def make_app(service: Service) -> FastAPI:
    """The application that answers with a service.

    Args:
        service: The service; whoever runs the application enters and closes it.
    """
    app = FastAPI(
        title="apr serve",
        version=__version__,
        description="Active perception for long video behind OpenAI's chat-completions protocol.",
        docs_url=None,
        redoc_url=None,
    )

    async def chat(request: Request) -> Answering:
        return Answering(service)

    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    async def model(name: str) -> dict[str, Any]:
        if name != service.model:
            raise Refused(404, f"there is no such model; this server has {service.model!r}", "model_not_found")
        return _model(service)

    async def health() -> JSONResponse:
        slots = service.slots
        told = {
            "status": "stopping" if slots.closed else "ok",
            "model": service.model,
            "version": __version__,
            "running": slots.running,
            "waiting": slots.waiting,
            "max_concurrent": slots.most,
            "queue": slots.queue,
        }
        return JSONResponse(told, 503 if slots.closed else 200)

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": told} for status, told in _STATUSES.items()
    }

    def only(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: errors[status] for status in statuses}

    app.add_api_route(
        "/v1/chat/completions",
        chat,
        methods=["POST"],
        responses=errors | {200: {"content": {"application/json": {}, "text/event-stream": {}}}},
        response_model=None,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
            }
        },
        summary="Answer a question about videos, sounds or pictures",
    )
    app.add_api_route("/v1/models", models, methods=["GET"], responses=only(401, 421))
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET"], responses=only(400, 401, 404, 421))
    app.add_api_route(
        "/health", health, methods=["GET"], responses=only(421) | {503: {"description": "It is stopping."}}
    )
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    _add_schemas(app)
    return app


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.started,
        "owned_by": "apr-plugin",
        "apr": {"policy": service.policy.name, "arm": service.config.arm, "config_hash": service.config_hash},
    }


def _add_schemas(app: FastAPI) -> None:
    """Put the request's schema into the description: its body is read by hand, within limits."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        described: dict[str, Any] = own()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        if "ChatRequest" not in schemas:
            schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {}) | {"ChatRequest": schema}
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            for path in described["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
        return described

    app.openapi = openapi


def _error(fault: Refused, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(fault.body(), fault.status, fault.headers() | (headers or {}))


async def _refused(request: Request, fault: Refused) -> JSONResponse:
    return _error(fault)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return _error(malformed("a part of the address is not valid"))


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    told = {404: "there is no such path; POST /v1/chat/completions is the one that answers"}
    return _error(
        Refused(
            error.status_code,
            told.get(error.status_code, str(error.detail)),
            "not_found" if error.status_code == 404 else "http_error",
        ),
        dict(error.headers or {}),
    )
