"""VUE-TR and VUE-TR-V2: every span of a video that matches a short query, by sight, sound or both."""
