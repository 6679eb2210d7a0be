// The platform's HTTP API as this page uses it; every failure is an ApiError or an AwayError.

import { EventSourceParserStream } from "eventsource-parser/stream"
import type { Health, Loading, Moved, Place, Problem, Refusal } from "./pure/condition.ts"
import { ApiError, AwayError } from "./pure/failures.ts"
import type { Params, Schema } from "./pure/schema.ts"

export interface Offer {
  readonly pipeline: string
  readonly version: string
  readonly description: string
  readonly params_schema: Schema
  readonly slots: number
  readonly free: number
  readonly warm?: boolean
  readonly devices?: readonly string[]
}
export interface Prices {
  readonly currency: string
  readonly data: readonly { readonly pipeline: string; readonly micro_per_second: number }[]
}
export interface Stream {
  readonly id: string
  readonly pipeline: string
  readonly stream_key: string
  readonly output_playback_id: string
  readonly whip_url: string
  readonly whep_url: string
  readonly rtmp_url: string
  readonly hls_url: string
  readonly events_url: string
  readonly publish_url: string
  readonly play_url: string
}
/** What the platform says of a running session, once a second. */
export interface Status {
  readonly session: string
  readonly phase: string
  readonly end_reason: string | null
  readonly fps_in?: number
  readonly fps_out?: number
  readonly frames_dropped?: number
  readonly latency_ms?: number
  readonly infer_ms?: number
  readonly cost_micro?: number
  readonly micro_per_second: number
  readonly session_ms?: number
  readonly viewers?: number
  readonly health?: Health | null
  readonly loading?: Loading | null
  readonly queue?: Place | null
}
export type StreamEvent =
  | { readonly kind: "status"; readonly status: Status }
  | { readonly kind: "applied"; readonly revision: number; readonly applies: string }
  | { readonly kind: "refused"; readonly refusal: Refusal }
  | { readonly kind: "loading"; readonly loading: Loading }
  | { readonly kind: "problem"; readonly problem: Problem }
  | { readonly kind: "health"; readonly health: Health }
  | { readonly kind: "moved"; readonly moved: Moved }
  | { readonly kind: "data"; readonly data: unknown }
  | { readonly kind: "ended"; readonly reason: string; readonly message: string }

const ANSWER_S = 15
const KEY = "sluice.key"

export function key(): string {
  return localStorage.getItem(KEY) ?? ""
}

/** Keep the key in this browser, and nowhere else; an empty one forgets it. */
export function keepKey(value: string): void {
  if (value === "") localStorage.removeItem(KEY)
  else localStorage.setItem(KEY, value)
}

/** The same path on this page's own origin, whatever name the platform gives itself. */
export function here(url: string): string {
  const { pathname, search } = new URL(url, location.href)
  return pathname + search
}

export async function balance(): Promise<number> {
  const found = (await call("GET", "/v1/balance")) as { available_micro: number }
  return found.available_micro
}

export async function pipelines(): Promise<readonly Offer[]> {
  return ((await call("GET", "/v1/pipelines")) as { data: Offer[] }).data
}

export async function prices(): Promise<Prices> {
  return (await call("GET", "/v1/prices")) as Prices
}

export async function createStream(pipeline: string, params: Params): Promise<Stream> {
  return (await call("POST", "/v1/streams", { name: "playground", pipeline, params })) as Stream
}

/** Returns the revision, and how it takes effect. */
export async function change(stream: Stream, params: Params): Promise<{ revision: number; applies: string }> {
  const answer = (await call("PATCH", `/v1/streams/${stream.id}`, { params })) as {
    update: { revision: number; applies: string }
  }
  return answer.update
}

/** `leaving`: the page goes away, and the request is to outlive it. */
export async function deleteStream(stream: Stream, leaving = false): Promise<void> {
  await call("DELETE", `/v1/streams/${stream.id}`, undefined, leaving)
}

/** Where the stream's start is in the line for a runner; null when it is in none. */
export async function place(stream: Stream): Promise<Place | null> {
  const answer = (await call("GET", `/v1/streams/${stream.id}/status`)) as { data: { queue?: Place | null } }
  return answer.data.queue ?? null
}

/** What the platform says of a stream, until `stop`; ends when the connection does. */
export async function* events(stream: Stream, stop: AbortSignal): AsyncGenerator<StreamEvent> {
  const answer = await reach(here(stream.events_url), { headers: authorization(), signal: stop })
  if (!answer.ok || !answer.body) throw await refusal(answer)
  const parsed = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())
  for await (const { event, data } of parsed) {
    const heard = eventOf(event ?? "", parsedOr(data))
    if (heard) yield heard
  }
}

function eventOf(name: string, body: unknown): StreamEvent | null {
  switch (name) {
    case "status":
      return body === null ? null : { kind: "status", status: body as Status }
    case "data":
      return { kind: "data", data: body }
    case "applied":
      return { kind: "applied", ...(body as { revision: number; applies: string }) }
    case "refused":
      return { kind: "refused", refusal: body as Refusal }
    case "loading":
      return { kind: "loading", loading: body as Loading }
    case "problem":
      return { kind: "problem", problem: body as Problem }
    case "health":
      return { kind: "health", health: body as Health }
    case "moved":
      return { kind: "moved", moved: body as Moved }
    case "ended":
      return { kind: "ended", ...(body as { reason: string; message: string }) }
    default:
      return null
  }
}

// What a pipeline says is its own: text that is no JSON is shown as it is.
function parsedOr(data: string): unknown {
  try {
    return JSON.parse(data)
  } catch {
    return data
  }
}

async function call(method: string, path: string, body?: unknown, keepalive = false): Promise<unknown> {
  const answer = await reach(path, {
    method,
    keepalive,
    headers: { ...authorization(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(ANSWER_S * 1000),
  })
  if (!answer.ok) throw await refusal(answer)
  return answer.json()
}

/** `fetch`, whose one way to say that nobody answered is a TypeError or a time-out. */
export async function reach(path: string, request: RequestInit): Promise<Response> {
  try {
    return await fetch(path, { cache: "no-store", credentials: "omit", ...request })
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error
    throw new AwayError(path)
  }
}

/** The platform's error body, or what can be said without one. */
export async function refusal(answer: Response): Promise<ApiError> {
  const wait = Number(answer.headers.get("Retry-After") ?? Number.NaN)
  const body = (await answer.json().catch(() => null)) as {
    error?: string
    code?: string
    details?: { field?: string; position?: number; expected_wait_s?: number }
  } | null
  return new ApiError(
    body?.error ?? `HTTP ${answer.status}`,
    answer.status,
    body?.code ?? "",
    body?.details?.field ?? null,
    Number.isFinite(wait) ? wait : null,
    placeOf(body?.details),
  )
}

function placeOf(details: { position?: number; expected_wait_s?: number } | null | undefined): Place | null {
  if (details?.position === undefined) return null
  return { position: details.position, expected_wait_s: details.expected_wait_s ?? null }
}

function authorization(): Record<string, string> {
  const value = key()
  return value === "" ? {} : { Authorization: `Bearer ${value}` }
}
