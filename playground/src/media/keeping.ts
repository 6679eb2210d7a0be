// A connection that comes back: after a drop it is made anew, for as long as the platform keeps the session.

import { ApiError, AwayError, NoConnectionError } from "../pure/failures.ts"
import type { Peering } from "./peering.ts"

const GRACE_MS = 30_000
const RECOVERS_MS = 3000 // many drops are a moment's
const FIRST_PAUSE_MS = 500
const LONGEST_PAUSE_MS = 4000

/** Runs until `stop`; raises what `open` raises the first time, or when a drop lasts longer than the grace. */
export async function keep(
  open: () => Promise<Peering>,
  stands: (peering: Peering | null) => void,
  stop: AbortSignal,
): Promise<void> {
  let peering: Peering | null = null
  try {
    peering = await open()
    for (;;) {
      stands(peering)
      await dropped(
        peering.pc,
        () => stands(null),
        () => stands(peering),
        stop,
      )
      stands(null)
      await peering.close()
      peering = null
      peering = await again(open, stop)
    }
  } finally {
    await peering?.close()
  }
}

async function again(open: () => Promise<Peering>, stop: AbortSignal): Promise<Peering> {
  const until = performance.now() + GRACE_MS
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      return await open()
    } catch (error) {
      if (!passes(error) || performance.now() > until) throw error
    }
    await sleep(pause, stop)
  }
}

// 409: the platform has not noticed yet that the connection before is gone.
function passes(error: unknown): boolean {
  if (error instanceof ApiError) return error.status === 409 || error.status === 429 || error.status >= 500
  return error instanceof AwayError || error instanceof NoConnectionError
}

/** Resolves when the connection is gone for good; raises when `stop` comes. */
function dropped(
  pc: RTCPeerConnection,
  shaky: () => void,
  back: () => void,
  stop: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const over = new AbortController()
    let timer: ReturnType<typeof setTimeout> | undefined
    const settle = (end: () => void) => {
      clearTimeout(timer)
      over.abort()
      end()
    }
    const look = () => {
      clearTimeout(timer)
      if (pc.connectionState === "failed" || pc.connectionState === "closed") settle(resolve)
      else if (pc.connectionState === "disconnected") {
        shaky()
        timer = setTimeout(() => settle(resolve), RECOVERS_MS)
      } else if (pc.connectionState === "connected") back()
    }
    pc.addEventListener("connectionstatechange", look, { signal: over.signal })
    const stopped = () => settle(() => reject(stop.reason))
    stop.addEventListener("abort", stopped, { signal: over.signal })
    if (stop.aborted) stopped()
    else if (pc.connectionState !== "connected") look()
  })
}

export function sleep(ms: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stopped = () => {
      clearTimeout(timer)
      reject(stop.reason)
    }
    const timer = setTimeout(() => {
      stop.removeEventListener("abort", stopped)
      resolve()
    }, ms)
    stop.addEventListener("abort", stopped, { once: true })
    if (stop.aborted) stopped()
  })
}
