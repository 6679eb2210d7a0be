// Each picture as a video element shows it, until the returned function is called.

export function onPictures(video: HTMLVideoElement, shown: (nowMs: number) => void): () => void {
  let handle = 0
  const next = (now: number) => {
    shown(now)
    handle = video.requestVideoFrameCallback(next)
  }
  handle = video.requestVideoFrameCallback(next)
  return () => video.cancelVideoFrameCallback(handle)
}
