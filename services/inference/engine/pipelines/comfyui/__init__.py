"""ComfyUI workflows on live pictures: run here where the nodes are known, else by the operator's ComfyUI."""
