// A worker that says when the next picture is due: the timers of a page in the background are slowed to one a second.

const PICTURES_PER_SECOND = 30
setInterval(() => postMessage(null), 1000 / PICTURES_PER_SECOND)
