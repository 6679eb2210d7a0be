// What went wrong, in words that say what to do about it. Pure.

import { type Place, placeWords } from "./condition.ts"

export class ApiError extends Error {
  readonly status: number
  readonly code: string
  readonly field: string | null
  readonly retryAfterS: number | null
  /** Of who was refused for lack of a runner. */
  readonly place: Place | null

  constructor(
    message: string,
    status: number,
    code = "",
    field: string | null = null,
    retryAfterS: number | null = null,
    place: Place | null = null,
  ) {
    super(message)
    this.name = "ApiError"
    this.status = status
    this.code = code
    this.field = field
    this.retryAfterS = retryAfterS
    this.place = place
  }
}

/** The platform did not answer at all. */
export class AwayError extends Error {
  override readonly name = "AwayError"
}

/** The platform answered, but no media went through. */
export class NoConnectionError extends Error {
  override readonly name = "NoConnectionError"
}

export type Remedy = "wait" | "key" | "again" | "none"

export interface Failure {
  readonly title: string
  readonly text: string
  readonly remedy: Remedy
  /** When to ask again, for `wait`. */
  readonly afterS: number
}

const DEFAULT_WAIT_S = 3

export function failureOf(error: unknown): Failure {
  if (error instanceof ApiError) return ofApi(error)
  if (error instanceof AwayError) {
    return failure("The server does not answer", "It may be restarting, or the network is down.", "wait")
  }
  if (error instanceof NoConnectionError) {
    return failure(
      "No connection for video",
      "The server answered, but no video could go to it or come from it. A firewall may block UDP.",
      "again",
    )
  }
  if (error instanceof DOMException) return ofBrowser(error)
  const said = error instanceof Error ? error.message : String(error)
  return failure("Something went wrong", said, "again")
}

function ofApi(error: ApiError): Failure {
  switch (error.status) {
    case 401:
      return failure("A key is needed", "Enter an API key of this platform to go on.", "key")
    case 402:
      return failure(
        "No credit left",
        "This account's credit does not cover the session. Add some, then start again.",
        "again",
      )
    case 403:
      return failure("Not allowed", error.message, "key")
    case 404:
      return failure(
        "The stream is gone",
        "It was deleted or never existed. Starting again makes a new one.",
        "again",
      )
    case 409:
      return failure("The stream is in use", error.message, "again")
    case 429:
      return failure("Too many at once", error.message, "wait", error.retryAfterS)
    case 503: {
      if (error.code.includes("CAPACITY") || error.code.includes("EXHAUSTED")) {
        return failure(
          "All runners are busy",
          `One of them has to become free first${error.place ? `: ${placeWords(error.place)}` : ""}.`,
          "wait",
          error.retryAfterS,
        )
      }
      return failure("Not available right now", error.message, "wait", error.retryAfterS)
    }
    default:
      return failure(error.status >= 500 ? "The server failed" : "That did not work", error.message, "again")
  }
}

function ofBrowser(error: DOMException): Failure {
  switch (error.name) {
    case "NotAllowedError":
      return failure(
        "No permission",
        "The browser was not allowed to use it. Allow it beside the address bar, or choose another source.",
        "none",
      )
    case "NotFoundError":
    case "OverconstrainedError":
      return failure("No camera found", "Connect one and try again, or choose another source.", "none")
    case "NotReadableError":
      return failure(
        "The camera is in use",
        "Another program has it. Close that, or choose another source.",
        "none",
      )
    default:
      return failure("The browser refused", error.message, "again")
  }
}

function failure(title: string, text: string, remedy: Remedy, afterS: number | null = null): Failure {
  return { title, text, remedy, afterS: afterS ?? DEFAULT_WAIT_S }
}

export interface Ending {
  readonly title: string
  readonly text: string
  readonly orderly: boolean
}

const ENDINGS: Readonly<Record<string, readonly [string, string]>> = {
  stopped: ["Stopped", ""],
  stream_deleted: ["Stopped", "The stream was deleted."],
  input_ended: ["Finished", "The source ended."],
  publisher_gone: ["Ended", "No video came for too long."],
  max_duration: ["Ended", "The session reached its longest duration."],
}
const BREAKDOWNS: Readonly<Record<string, readonly [string, string]>> = {
  credit_exhausted: ["No credit left", "The output stopped where the credit ended."],
  input_unusable: ["The video could not be used", ""],
  input_undecodable: ["The video could not be decoded", ""],
  pipeline_failed: ["The pipeline failed", ""],
  start_failed: ["The session could not start", ""],
  out_of_memory: ["The runner ran out of memory", "A smaller model or picture may fit."],
  params_refused: ["The pipeline refused its parameters", ""],
  engine_crashed: ["The runner's engine crashed", "Another one has started by now."],
  engine_hung: ["The runner's engine hung", "Another one has started by now."],
  breaks_runners: ["The stream broke its runners", "It was stopped before it broke more of them."],
  bridge_lost: ["The server that had the stream was lost", "Start again to continue on another one."],
  no_capacity: ["All runners are busy", "One of them has to become free first."],
  no_output: ["Nothing came back", "Video went in for a minute and none came out."],
  stream_busy: ["The stream is in use", "Somebody else publishes to it."],
}

export function endingOf(reason: string, message: string): Ending {
  const orderly = ENDINGS[reason]
  const [title, text] = orderly ?? BREAKDOWNS[reason] ?? ["The stream ended", reason.replaceAll("_", " ")]
  return {
    title,
    text: orderly ? text : [text, message].filter(Boolean).join(" "),
    orderly: orderly !== undefined,
  }
}
