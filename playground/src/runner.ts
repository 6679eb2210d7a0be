// How the runner of the stream is, as the page shows it: what it loads, and what failed while that is news.

import { signal } from "@preact/signals"
import type { Health, Loading, Problem } from "./pure/condition.ts"

const TROUBLE_MS = 10_000 // a problem is shown for so long after it was last said
const BUSY = ["loading", "error"]

export class RunnerState {
  readonly loading = signal<Loading | null>(null)
  readonly trouble = signal<Problem | null>(null)
  #calm: ReturnType<typeof setTimeout> | undefined

  /** Null: the platform says each second that nothing is being loaded. */
  loads(loading: Loading | null): void {
    this.loading.value = loading !== null && loading.percent < 100 ? loading : null
  }

  is({ state }: Health): void {
    if (!BUSY.includes(state)) this.loading.value = null
  }

  fails(problem: Problem): void {
    clearTimeout(this.#calm)
    this.trouble.value = problem
    this.#calm = setTimeout(() => this.calm(), TROUBLE_MS)
  }

  /** The problem is no news any more. */
  calm(): void {
    clearTimeout(this.#calm)
    this.trouble.value = null
  }

  /** There is no runner any more, or another one. */
  forget(): void {
    this.loading.value = null
    this.calm()
  }
}
