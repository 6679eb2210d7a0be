// What became of each change that was sent, so that a refused one can be taken back on the page too. Pure.

import type { Params } from "./schema.ts"

interface Change {
  readonly revision: number
  readonly patch: Params
  readonly before: Params
}

const KEPT = 64

export class Sent {
  #known: Params
  #changes: Change[] = []
  readonly #early = new Set<number>()

  /** `known` is what the platform has to begin with. */
  constructor(known: Params) {
    this.#known = known
  }

  /** The platform took a change; returns what to show instead if the runner has refused it by now. */
  accepted(revision: number, patch: Params): Params | null {
    const before = Object.fromEntries(Object.keys(patch).map((name) => [name, this.#known[name]]))
    this.#known = { ...this.#known, ...patch }
    this.#changes = [...this.#changes.slice(1 - KEPT), { revision, patch, before }]
    return this.#early.delete(revision) ? this.refused(revision) : null
  }

  /** The values that are shown again; null for a revision that is somebody else's, or not known yet. */
  refused(revision: number): Params | null {
    const place = this.#changes.findIndex((change) => change.revision === revision)
    const gone = this.#changes[place]
    if (gone === undefined) {
      this.#early.add(revision)
      return null
    }
    const back: Params = { ...gone.before }
    const later = this.#changes.slice(place + 1).map((change) => {
      const mine = Object.keys(change.before).filter((name) => name in back)
      const before = { ...change.before, ...pick(back, mine) }
      for (const name of mine) delete back[name]
      return { ...change, before }
    })
    this.#changes = [...this.#changes.slice(0, place), ...later]
    this.#known = { ...this.#known, ...back }
    return back
  }
}

function pick(params: Params, names: readonly string[]): Params {
  return Object.fromEntries(names.map((name) => [name, params[name]]))
}
