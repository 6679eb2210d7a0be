"""What authors of pipelines work with before a platform is there: find a class, run it, begin one."""
