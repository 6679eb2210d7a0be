// How the runner of the stream is, as the page shows it: what it loads, what failed and that it is another one
// while that is news.

import { signal } from "@preact/signals"
import type { StreamEvent } from "./api.ts"
import type { Health, Loading, Moved, Problem } from "./pure/condition.ts"

const TROUBLE_MS = 10_000 // a problem is shown for so long after it was last said
const MOVE_MS = 10_000 // and a move
const BUSY = ["loading", "error"]

type RunnerEvent = Extract<StreamEvent, { kind: "loading" | "problem" | "health" | "moved" }>

export class RunnerState {
  readonly loading = signal<Loading | null>(null)
  readonly trouble = signal<Problem | null>(null)
  readonly move = signal<Moved | null>(null)
  #calm: ReturnType<typeof setTimeout> | undefined
  #settled: ReturnType<typeof setTimeout> | undefined

  hear(event: RunnerEvent): void {
    if (event.kind === "loading") this.loads(event.loading)
    else if (event.kind === "problem") this.fails(event.problem)
    else if (event.kind === "health") this.is(event.health)
    else this.moved(event.moved)
  }

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

  /** Another runner has the stream now. */
  moved(moved: Moved): void {
    clearTimeout(this.#settled)
    this.move.value = moved
    this.#settled = setTimeout(() => {
      this.move.value = null
    }, MOVE_MS)
  }

  /** The problem is no news any more. */
  calm(): void {
    clearTimeout(this.#calm)
    this.trouble.value = null
  }

  /** There is no runner any more, or another one. */
  forget(): void {
    this.loading.value = null
    clearTimeout(this.#settled)
    this.move.value = null
    this.calm()
  }
}
