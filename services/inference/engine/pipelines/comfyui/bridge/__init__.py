"""The operator's own ComfyUI, over the API that it has: pictures up and back, nothing installed there."""
