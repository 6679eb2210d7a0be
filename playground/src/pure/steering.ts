// How changes reach a running stream: gathered for a moment, one request at a time, the newest value wins.

import type { Params } from "./schema.ts"

export class Steering {
  #waiting: Params = {}
  #timer: ReturnType<typeof setTimeout> | undefined
  #sending = false
  readonly #send: (patch: Params) => Promise<void>
  readonly #delayMs: number

  /** `send` handles its own failures: a rejected promise here is a bug. */
  constructor(send: (patch: Params) => Promise<void>, delayMs = 100) {
    this.#send = send
    this.#delayMs = delayMs
  }

  set(patch: Params): void {
    Object.assign(this.#waiting, patch)
    if (!this.#sending && this.#timer === undefined)
      this.#timer = setTimeout(() => void this.#flush(), this.#delayMs)
  }

  /** Forget what has not been sent. */
  clear(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#waiting = {}
  }

  async #flush(): Promise<void> {
    this.#timer = undefined
    const patch = this.#waiting
    this.#waiting = {}
    this.#sending = true
    try {
      await this.#send(patch)
    } finally {
      this.#sending = false
      if (Object.keys(this.#waiting).length > 0) this.set({})
    }
  }
}
