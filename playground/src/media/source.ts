// Where the video comes from. Each source is a MediaStream that its opener made and `close` ends.

import { drawPattern } from "./pattern.ts"

/** "elsewhere": another program publishes, and this page watches and steers. */
export type SourceKind = "pattern" | "camera" | "screen" | "file" | "elsewhere"

export interface Wanted {
  /** Of the picture, in pixels; its width follows from 16:9 or from the source. */
  readonly height: number
  readonly sound: boolean
}

export interface Source {
  readonly kind: SourceKind
  readonly media: MediaStream
  close(): void
}

const PICTURES_PER_SECOND = 30

export function openPattern({ height }: Wanted): Source {
  const canvas = document.createElement("canvas")
  canvas.height = height
  canvas.width = Math.round((height * 16) / 9 / 2) * 2
  const pen = canvas.getContext("2d", { alpha: false })
  if (pen === null) throw new Error("this browser draws no canvas")
  const media = canvas.captureStream(0)
  const track = media.getVideoTracks()[0] as CanvasCaptureMediaStreamTrack
  const draw = () => {
    drawPattern(pen, canvas.width, canvas.height, performance.now())
    track.requestFrame()
  }
  const metronome = new Worker(new URL("./metronome.ts", import.meta.url), { type: "module" })
  metronome.onmessage = draw
  draw()
  return {
    kind: "pattern",
    media,
    close: () => {
      metronome.terminate()
      track.stop()
    },
  }
}

export async function openCamera({ height, sound }: Wanted): Promise<Source> {
  const video = {
    height: { ideal: height },
    width: { ideal: Math.round((height * 16) / 9) },
    frameRate: { ideal: PICTURES_PER_SECOND },
  }
  return captured("camera", await devices().getUserMedia({ video, audio: sound }))
}

export async function openScreen({ height, sound }: Wanted): Promise<Source> {
  const video = { height: { max: height }, frameRate: { max: PICTURES_PER_SECOND } }
  return captured("screen", await devices().getDisplayMedia({ video, audio: sound }))
}

/** A video file, over and over. */
export async function openFile(file: File, { height, sound }: Wanted): Promise<Source> {
  const player = document.createElement("video")
  const address = URL.createObjectURL(file)
  player.src = address
  player.loop = true
  player.playsInline = true
  player.muted = !sound
  try {
    await player.play()
  } catch {
    URL.revokeObjectURL(address)
    throw new DOMException(
      "This browser cannot play that file. MP4 with H.264 and WebM work everywhere.",
      "DataError",
    )
  }
  const { media, stop } = painted(player, height)
  const heard = sound ? soundOf(player) : null
  for (const track of heard?.tracks ?? []) media.addTrack(track)
  return {
    kind: "file",
    media,
    close: () => {
      stop()
      heard?.close()
      for (const track of media.getTracks()) track.stop()
      player.pause()
      player.removeAttribute("src")
      player.load()
      URL.revokeObjectURL(address)
    },
  }
}

// A file has any size; what is sent is painted from it at the wanted one.
function painted(player: HTMLVideoElement, height: number): { media: MediaStream; stop: () => void } {
  const canvas = document.createElement("canvas")
  canvas.height = Math.min(height, even(player.videoHeight))
  canvas.width = even((player.videoWidth / player.videoHeight) * canvas.height)
  const pen = canvas.getContext("2d", { alpha: false })
  if (pen === null) throw new Error("this browser draws no canvas")
  const media = canvas.captureStream(0)
  const track = media.getVideoTracks()[0] as CanvasCaptureMediaStreamTrack
  const metronome = new Worker(new URL("./metronome.ts", import.meta.url), { type: "module" })
  let painted = -1
  metronome.onmessage = () => {
    if (player.currentTime === painted) return
    painted = player.currentTime
    pen.drawImage(player, 0, 0, canvas.width, canvas.height)
    track.requestFrame()
  }
  return { media, stop: () => metronome.terminate() }
}

// The sound goes to the stream and not to the loudspeaker.
function soundOf(player: HTMLVideoElement): { tracks: MediaStreamTrack[]; close: () => void } {
  const context = new AudioContext()
  const out = context.createMediaStreamDestination()
  context.createMediaElementSource(player).connect(out)
  return { tracks: out.stream.getAudioTracks(), close: () => void context.close() }
}

const even = (pixels: number) => Math.max(2, Math.round(pixels / 2) * 2)

function captured(kind: SourceKind, media: MediaStream): Source {
  return {
    kind,
    media,
    close: () => {
      for (const track of media.getTracks()) track.stop()
    },
  }
}

// On a plain http:// page of another machine browsers give no camera at all.
function devices(): MediaDevices {
  const found = navigator.mediaDevices as MediaDevices | undefined
  if (found === undefined) {
    throw new DOMException("Camera and screen need https://, or http://localhost.", "SecurityError")
  }
  return found
}
