// A picture with its name in a corner: video if there is a stream, and whatever is to be said on top of it.

import type { ComponentChildren, Ref } from "preact"
import { useEffect, useRef } from "preact/hooks"

interface ScreenProps {
  readonly name: string
  /** What is to be known of it beside its name. */
  readonly state?: string
  readonly media: MediaStream | null
  readonly muted?: boolean
  readonly live?: boolean
  readonly video?: Ref<HTMLVideoElement>
  readonly corner?: ComponentChildren
  readonly children?: ComponentChildren
}

export function Screen({
  name,
  state = "",
  media,
  muted = true,
  live = false,
  video,
  corner,
  children,
}: ScreenProps) {
  const own = useRef<HTMLVideoElement>(null)
  useEffect(() => {
    const element = own.current
    if (element === null) return
    element.srcObject = media
    // Chromium refuses to begin with sound before the first click on the page; muted it always begins.
    if (media) void element.play().catch(() => undefined)
  }, [media])
  return (
    <figure class="screen" data-live={live}>
      <video
        ref={(element) => {
          own.current = element
          if (typeof video === "function") video(element)
          else if (video) video.current = element
        }}
        autoplay
        playsInline
        muted={muted}
        aria-label={name}
      />
      {children}
      <figcaption>
        <span class="dot" aria-hidden="true" />
        {name}
        {state && <span class="state">{state}</span>}
      </figcaption>
      {corner && <div class="corner">{corner}</div>}
    </figure>
  )
}

interface NoticeProps {
  readonly title: string
  readonly text: string
  readonly bad?: boolean
  readonly children?: ComponentChildren
}

export function Notice({ title, text, bad = false, children }: NoticeProps) {
  return (
    <div class="notice" data-bad={bad}>
      <strong>{title}</strong>
      {text && <p>{text}</p>}
      {children && <div class="row">{children}</div>}
    </div>
  )
}
