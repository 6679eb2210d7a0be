// Each picture as a video element shows it, until the returned function is called.

// The platform shows a still about once a second while it waits; video comes faster.
export const VIDEO_GAP_MS = 300
export const STILL_GAP_MS = 700

export function onPictures(video: HTMLVideoElement, shown: (nowMs: number) => void): () => void {
  let handle = 0
  const next = (now: number) => {
    shown(now)
    handle = video.requestVideoFrameCallback(next)
  }
  handle = video.requestVideoFrameCallback(next)
  return () => video.cancelVideoFrameCallback(handle)
}
