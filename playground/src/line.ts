// Where a start is in the line for a runner, looked up for as long as it waits.

import { signal } from "@preact/signals"
import * as api from "./api.ts"
import { sleep } from "./media/keeping.ts"
import type { Place } from "./pure/condition.ts"

const LOOK_MS = 1000

export class Line {
  readonly place = signal<Place | null>(null)

  /** Raises nothing; ends when it does not wait any more, or at `stop`. */
  async follow(stream: api.Stream, waits: () => boolean, stop: AbortSignal): Promise<void> {
    while (await sleep(LOOK_MS, stop).then(waits, () => false)) {
      const place = await api.place(stream).catch(() => this.place.value)
      if (!stop.aborted) this.place.value = waits() ? place : null
    }
    if (!stop.aborted) this.leave()
  }

  leave(): void {
    this.place.value = null
  }
}
