// How the runner is, in words. Pure.

export interface Loading {
  readonly why: string
  readonly stage: string
  readonly percent: number
}
export interface Problem {
  readonly stage: string
  readonly kind: string
  readonly error: string
  readonly message: string
  readonly action: string
  readonly frame: number | null
}
export interface Health {
  readonly state: string
  readonly cause: string | null
}
export interface Refusal {
  readonly revision: number
  readonly field: string | null
  readonly reason: string
  readonly message: string
}

/** Where a start is in the line for a runner. */
export interface Place {
  readonly position: number
  readonly expected_wait_s: number | null
}
/** The stream goes on with another runner. */
export interface Moved {
  readonly freeze_ms: number
}

const WHY: Readonly<Record<string, string>> = {
  warm: "Preparing",
  reload: "Loading anew",
  restart: "Restarting",
}

/** "Loading weights, 40 %". */
export function loadingWords({ why, stage, percent }: Loading): string {
  const what = stage.trim().replaceAll("_", " ")
  return `${WHY[why] ?? "Loading"}${what ? `: ${what}` : ""}, ${percent} %`.replace("Loading: ", "Loading ")
}

/** "2nd in line, about 20 s". */
export function placeWords({ position, expected_wait_s: wait }: Place): string {
  const about = wait === null ? "" : `, about ${Math.max(1, Math.round(wait))} s`
  return `${ordinal(position)} in line${about}`
}

function ordinal(number: number): string {
  const endings = new Intl.PluralRules("en", { type: "ordinal" })
  const ending: Readonly<Record<string, string>> = { one: "st", two: "nd", few: "rd" }
  return `${number}${ending[endings.select(number)] ?? "th"}`
}

/** "moved to another runner, 0.4 s"; without the time where nobody could see it. */
export function movedWords({ freeze_ms: froze }: Moved): string {
  return froze < 50 ? "moved to another runner" : `moved to another runner, ${(froze / 1000).toFixed(1)} s`
}

const STAGES: Readonly<Record<string, string>> = {
  load: "while it loads",
  prepare: "while it prepares",
  process: "in a picture",
  process_audio: "in the sound",
  input: "in what was sent",
  engine: "in the engine",
}
const ACTIONS: Readonly<Record<string, string>> = {
  held: "Showing the last good picture.",
  rolled_back: "The last change was taken back.",
  reloading: "The pipeline loads anew; the last good picture stays.",
  restarting: "The engine restarts; the last good picture stays.",
  ended: "The session has ended.",
}
const KINDS: Readonly<Record<string, string>> = {
  pipeline_error: "The pipeline fails",
  hang: "The pipeline hangs",
  crash: "The engine crashed",
  out_of_memory: "Out of memory",
  poisoned_param: "A parameter breaks the pipeline",
  load_failed: "The pipeline could not be loaded",
}

export interface Trouble {
  readonly title: string
  readonly text: string
  readonly action: string
}

export function troubleOf({ stage, kind, error, message, action, frame }: Problem): Trouble {
  const where = frame === null ? (STAGES[stage] ?? "") : `in picture ${frame}`
  return {
    title: `${KINDS[kind] ?? "Something failed"}${where ? ` ${where}` : ""}`,
    text: [error, message].filter(Boolean).join(": "),
    action: ACTIONS[action] ?? "",
  }
}

const CAUSES: Readonly<Record<string, string>> = {
  slow: "slower than it should be",
  no_output: "nothing comes back",
  input_slow: "the source is slow",
  input_silent: "no video arrives",
}
const PHASES: Readonly<Record<string, string>> = {
  degraded: "not as it should be",
  paused: "no video arrives",
  migrating: "moves to another runner",
}

/** Beside the name of the result; empty when all is well. */
export function stateWords(phase: string, health: Health | null | undefined): string {
  if (health?.state.startsWith("degraded")) return CAUSES[health.cause ?? ""] ?? PHASES.degraded ?? ""
  return PHASES[phase] ?? ""
}

const APPLIES: Readonly<Record<string, string>> = {
  warm: ", prepared beside the video",
  reload: ", loaded anew",
}

export const appliedWords = (applies: string): string => APPLIES[applies] ?? ""

const COMING: Readonly<Record<string, string>> = {
  warm: "is being prepared…",
  reload: "the pipeline loads anew…",
}

export const comingWords = (applies: string): string => COMING[applies] ?? "on its way…"

/** The parameter that a refusal or an error names: `params.controlnets.0.model_id` is `controlnets`. */
export function parameterIn(field: string | null): string {
  return (field ?? "").replace(/^params\./, "").split(".")[0] ?? ""
}
