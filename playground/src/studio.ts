// What the page knows and does: one stream, steered while it runs. The view reads its signals and calls its verbs.

import { batch, computed, effect, signal } from "@preact/signals"
import * as api from "./api.ts"
import { looksOf } from "./known.ts"
import { Line } from "./line.ts"
import { keep, sleep } from "./media/keeping.ts"
import { type Link, LinkMeter, latencyOf } from "./media/link.ts"
import { Peering } from "./media/peering.ts"
import {
  openCamera,
  openFile,
  openPattern,
  openScreen,
  type Source,
  type SourceKind,
} from "./media/source.ts"
import { parameterIn, type Refusal } from "./pure/condition.ts"
import { ApiError, type Ending, endingOf, type Failure, failureOf } from "./pure/failures.ts"
import { groupsOf } from "./pure/groups.ts"
import { changedFrom, controlsOf, initialOf, type Params } from "./pure/schema.ts"
import { Sent } from "./pure/sent.ts"
import { Steering } from "./pure/steering.ts"
import { RunnerState } from "./runner.ts"
import { replace } from "./watching.ts"

export type Phase = "idle" | "starting" | "live" | "reconnecting" | "waiting" | "ended" | "failed"

export interface Message {
  readonly number: number
  readonly at: Date
  readonly data: unknown
}
/** How the newest change fared. */
export type Change =
  | { readonly state: "sent"; readonly applies: string }
  | { readonly state: "applied"; readonly applies: string; readonly ms: number }

const LOOK_MS = 1000
const MESSAGES_KEPT = 200
const REFRESH_MS = 10_000
const SPEEDS = ["live", "warm", "reload"]

export class Studio {
  readonly offers = signal<readonly api.Offer[] | null>(null)
  readonly prices = signal<api.Prices>({ currency: "USD", data: [] })
  readonly balance = signal<number | null>(null)
  readonly keyNeeded = signal(false)
  readonly keyRefused = signal(false)
  /** The dialog for a key is open. */
  readonly asking = signal(false)
  readonly away = signal<Failure | null>(null)

  readonly chosen = signal("")
  readonly values = signal<Params>({})
  readonly problems = signal<Readonly<Record<string, string>>>({})
  readonly kind = signal<SourceKind>("pattern")
  readonly height = signal(360)
  readonly sound = signal(false)
  readonly source = signal<Source | null>(null)
  readonly sourceFailure = signal<Failure | null>(null)

  readonly phase = signal<Phase>("idle")
  readonly failure = signal<Failure | null>(null)
  readonly ending = signal<Ending | null>(null)
  readonly retryAt = signal(0)
  readonly stream = signal<api.Stream | null>(null)
  readonly result = signal<MediaStream | null>(null)
  /** Pictures of the pipeline are on the screen, not the platform's still. */
  readonly playing = signal(false)
  readonly status = signal<api.Status | null>(null)
  readonly link = signal<Link | null>(null)
  /** From picture to screen, read in the test pattern. */
  readonly measuredMs = signal<number | null>(null)
  readonly change = signal<Change | null>(null)
  readonly messages = signal<readonly Message[]>([])
  readonly runner = new RunnerState()
  readonly line = new Line()

  readonly offer = computed(
    () => this.offers.value?.find((one) => one.pipeline === this.chosen.value) ?? null,
  )
  // As text, for offers come again and again, and only another schema makes other controls.
  readonly #schema = computed(() => JSON.stringify(this.offer.value?.params_schema ?? {}))
  readonly controls = computed(() => controlsOf(JSON.parse(this.#schema.value)))
  readonly groups = computed(() => groupsOf(this.controls.value))
  readonly ready = computed(() => this.source.value !== null || this.kind.value === "elsewhere")
  readonly running = computed(() => ["starting", "live", "reconnecting"].includes(this.phase.value))
  readonly estimatedMs = computed(() => {
    const [link, status] = [this.link.value, this.status.value]
    return link && status?.latency_ms ? latencyOf(link, status.latency_ms) : null
  })

  #stop = new AbortController()
  #publisher: Peering | null = null
  #viewer: Peering | null = null
  #file: File | null = null
  #opening = 0
  #patient = false
  #streamOf = ""
  #retry: ReturnType<typeof setTimeout> | undefined
  #numbered = 0
  readonly #sentAt = new Map<number, { readonly at: number; readonly applies: string }>()
  readonly #applied = new Map<number, string>()
  #sent = new Sent({})
  readonly #steering = new Steering((patch) => this.#send(patch))

  constructor() {
    effect(() => {
      void this.chosen.value
      this.values.value = initialOf(this.controls.value)
      this.problems.value = {}
    })
  }

  // --- what there is

  /** Ask the platform who we are and what it has; afterwards again and again, for runners come and go. */
  async open(): Promise<void> {
    await this.choose("pattern")
    await this.refresh()
    setInterval(() => void this.refresh(), REFRESH_MS)
  }

  async refresh(): Promise<void> {
    try {
      const [offers, prices] = await Promise.all([api.pipelines(), api.prices()])
      batch(() => {
        this.offers.value = offers
        this.prices.value = prices
        if (!offers.some((offer) => offer.pipeline === this.chosen.value)) {
          // What needs nothing but a click comes before what has to be set up first.
          const first =
            offers.find((offer) => looksOf(offer.pipeline).length > 0) ??
            offers.find((offer) => offer.pipeline !== "passthrough") ??
            offers[0]
          if (!this.running.value && first) this.chosen.value = first.pipeline
        }
      })
      this.balance.value = await api.balance()
      this.away.value = null
      this.keyNeeded.value = false
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) this.#needKey()
      else this.away.value = failureOf(error)
    }
  }

  #needKey(): void {
    batch(() => {
      this.away.value = null
      this.keyNeeded.value = true
      this.keyRefused.value = api.key() !== ""
      this.balance.value = null
    })
  }

  useKey(key: string): void {
    api.keepKey(key)
    this.asking.value = false
    this.balance.value = null
    this.keyNeeded.value = false
    this.failure.value = null
    if (this.phase.value === "failed") this.phase.value = "idle"
    void this.refresh()
  }

  // --- the source

  /** Raises nothing: what fails is in `sourceFailure`. */
  async choose(kind: SourceKind, file: File | null = this.#file): Promise<void> {
    if (this.running.value && this.source.value === null) await this.stop()
    this.kind.value = kind
    this.#file = file
    this.sourceFailure.value = null
    const opening = ++this.#opening
    // Until a file is chosen, what is being sent goes on.
    if (kind === "file" && file === null && this.running.value) return
    if (kind === "elsewhere" || (kind === "file" && file === null)) {
      this.#use(null)
      return
    }
    try {
      const source = await this.#open(kind, file)
      if (opening !== this.#opening) source.close()
      else this.#use(source)
    } catch (error) {
      if (opening !== this.#opening) return
      if (!this.running.value) this.#use(null)
      this.sourceFailure.value = failureOf(error)
    }
  }

  /** The choice of another source came to nothing; the one before goes on. */
  keepSource(): void {
    this.sourceFailure.value = null
    this.kind.value = this.source.value?.kind ?? this.kind.value
  }

  #open(kind: SourceKind, file: File | null): Source | Promise<Source> {
    const wanted = { height: this.height.value, sound: this.sound.value }
    if (kind === "camera") return openCamera(wanted)
    if (kind === "screen") return openScreen(wanted)
    if (kind === "file" && file) return openFile(file, wanted)
    return openPattern(wanted)
  }

  #use(source: Source | null): void {
    const before = this.source.value
    this.source.value = source
    this.measuredMs.value = null
    before?.close()
    source?.media.getVideoTracks()[0]?.addEventListener("ended", () => {
      if (this.source.value === source) this.#use(null)
    })
    if (source && this.#publisher) void this.#publisher.replace(source.media)
    if (source === null && before !== null && this.running.value) void this.stop()
  }

  // --- the run

  async start(): Promise<void> {
    this.#patient = false
    await this.#run()
  }

  async #run(): Promise<void> {
    if (!this.ready.value || this.running.value) return
    clearTimeout(this.#retry)
    const stop = new AbortController()
    this.#stop = stop
    batch(() => {
      this.phase.value = "starting"
      this.failure.value = this.ending.value = this.status.value = this.link.value = this.change.value = null
      this.measuredMs.value = null
      this.messages.value = []
      this.playing.value = false
      this.runner.forget()
    })
    try {
      const stream = await this.#streamFor(this.chosen.value)
      stop.signal.throwIfAborted()
      void this.#watch(stream, stop)
      void this.line.follow(stream, () => !this.#publisher && this.source.value !== null, stop.signal)
      void this.#measure(stop.signal)
      if (this.source.value === null) await this.#listen(stream, stop)
      else await this.#publish(stream, this.source.value, stop)
    } catch (error) {
      this.#failed(error, stop)
    }
  }

  async #publish(stream: api.Stream, source: Source, stop: AbortController): Promise<void> {
    let heard = false
    let sent = source
    await keep(
      () => {
        sent = this.source.value ?? source
        return Peering.publish(stream.whip_url, sent.media, stop.signal)
      },
      (peering) => {
        // Another source may have been chosen while the connection was made.
        const chosen = this.source.value
        if (peering && chosen && chosen !== sent) void peering.replace(chosen.media)
        // Not before: until then the platform may still speak of the stream's session before this one.
        if (peering && !heard) void this.#listen(stream, stop)
        heard ||= peering !== null
        this.#publisher = peering
        this.#stands(stop)
      },
      stop.signal,
    )
  }

  /** Beside publishing and not after it: until there are pictures the platform shows a still. */
  async #watch(stream: api.Stream, stop: AbortController): Promise<void> {
    const media = new MediaStream()
    this.result.value = media
    try {
      await keep(
        () => Peering.watch(stream.whep_url, (event) => replace(media, event.track), stop.signal),
        (peering) => {
          this.#viewer = peering
          this.#stands(stop)
        },
        stop.signal,
      )
    } catch (error) {
      this.#failed(error, stop)
    }
  }

  #stands(stop: AbortController): void {
    if (stop.signal.aborted) return
    if (this.#publisher) this.#patient = false
    if (this.#viewer && (this.#publisher || this.source.value === null)) this.phase.value = "live"
    else if (this.phase.value === "live") this.phase.value = "reconnecting"
  }

  #failed(error: unknown, stop: AbortController): void {
    if (stop.signal.aborted) return
    stop.abort()
    batch(() => {
      this.#over("failed")
      if (error instanceof ApiError && error.field?.startsWith("params.")) this.#problem(error)
      if (error instanceof ApiError && error.status === 404) this.stream.value = null
      this.failure.value = failureOf(error)
      if (error instanceof ApiError && error.status === 401) this.#needKey()
    })
    if (this.#patient && this.failure.value?.remedy === "wait") this.wait()
  }

  /** Raises nothing; the stream stays, so that its addresses and its parameters do. */
  async stop(): Promise<void> {
    clearTimeout(this.#retry)
    this.#stop.abort()
    this.#over("idle")
    await this.refresh()
  }

  #over(phase: Phase): void {
    batch(() => {
      this.phase.value = phase
      this.result.value = null
      this.playing.value = false
      this.line.leave()
      this.#publisher = this.#viewer = null
      this.runner.forget()
    })
  }

  /** Start again by itself when the platform said that it may work, as often as it says so. */
  wait(): void {
    const after = (this.failure.value?.afterS ?? 1) * 1000
    this.retryAt.value = Date.now() + after
    this.phase.value = "waiting"
    this.#patient = true
    this.#retry = setTimeout(() => void this.#run(), after)
  }

  async #streamFor(pipeline: string): Promise<api.Stream> {
    const there = this.stream.value
    if (there && this.#streamOf === pipeline) return there
    const values = this.values.value
    const made = await api.createStream(pipeline, changedFrom(this.controls.value, values))
    this.#sent = new Sent(values)
    this.#sentAt.clear()
    this.#applied.clear()
    if (there) void api.deleteStream(there).catch(() => undefined)
    this.#streamOf = pipeline
    this.stream.value = made
    return made
  }

  /** Make the stream without publishing to it: for its addresses. */
  async prepare(): Promise<void> {
    try {
      await this.#streamFor(this.chosen.value)
    } catch (error) {
      this.failure.value = failureOf(error)
      this.phase.value = "failed"
    }
  }

  /** The page goes away: end what it began. */
  leave(): void {
    this.#stop.abort()
    this.#steering.clear()
    const stream = this.stream.value
    if (stream) void api.deleteStream(stream, true).catch(() => undefined)
    this.stream.value = null
    this.#over("idle")
  }

  // --- what the platform says

  async #listen(stream: api.Stream, stop: AbortController): Promise<void> {
    while (!stop.signal.aborted) {
      try {
        for await (const event of api.events(stream, stop.signal)) this.#hear(event, stop)
      } catch (error) {
        if (stop.signal.aborted) return
        if (error instanceof ApiError && error.status < 500) return
      }
      await sleep(1000, stop.signal).catch(() => undefined)
    }
  }

  #hear(event: api.StreamEvent, stop: AbortController): void {
    if (stop.signal.aborted) return
    switch (event.kind) {
      case "status":
        this.status.value = event.status
        if (!event.status.loading) this.runner.loads(null)
        break
      case "applied":
        this.#seen(event.revision, event.applies)
        break
      case "refused":
        this.#refused(event.refusal)
        break
      case "loading":
      case "problem":
      case "health":
      case "moved":
        this.runner.hear(event)
        break
      case "data":
        this.messages.value = [
          ...this.messages.value.slice(1 - MESSAGES_KEPT),
          { number: ++this.#numbered, at: new Date(), data: event.data },
        ]
        break
      case "ended":
        stop.abort()
        this.#over("ended")
        this.ending.value = endingOf(event.reason, event.message)
        void this.refresh()
        break
    }
  }

  async #measure(stop: AbortSignal): Promise<void> {
    const meter = new LinkMeter()
    while (!stop.aborted) {
      const link = await meter.look(this.#publisher, this.#viewer)
      if (!stop.aborted && this.#viewer) this.link.value = link
      await sleep(LOOK_MS, stop).catch(() => undefined)
    }
  }

  // --- steering

  set(name: string, value: unknown): void {
    this.values.value = { ...this.values.value, [name]: value }
    const { [name]: _, ...others } = this.problems.value
    this.problems.value = others
    if (this.stream.value && this.#streamOf === this.chosen.value) this.#steering.set({ [name]: value })
  }

  async #send(patch: Params): Promise<void> {
    const stream = this.stream.value
    if (stream === null) return
    const at = performance.now()
    try {
      const { revision, applies } = await api.change(stream, patch)
      const back = this.#sent.accepted(revision, patch)
      if (applies === "at_start" || stream !== this.stream.value) return
      if (back) return this.#takeBack(back)
      this.#sentAt.set(revision, { at, applies })
      this.change.value = { state: "sent", applies }
      const seen = this.#applied.get(revision)
      if (seen !== undefined) this.#seen(revision, seen)
    } catch (error) {
      if (error instanceof ApiError && error.field) this.#problem(error)
      else if (this.running.value)
        this.problems.value = { ...this.problems.value, "": failureOf(error).title }
    }
  }

  // The picture may be quicker than the answer to the request that changed it.
  #seen(revision: number, applies: string): void {
    this.#applied.set(revision, applies)
    const sent = this.#sentAt.get(revision)
    if (sent === undefined) return
    // A quick change may overtake one that is still being prepared, which stays awaited.
    for (const [older, { applies: way }] of [...this.#sentAt])
      if (older <= revision && (older === revision || SPEEDS.indexOf(way) <= SPEEDS.indexOf(applies)))
        this.#sentAt.delete(older)
    this.change.value = { state: "applied", applies, ms: performance.now() - sent.at }
  }

  #refused(refusal: Refusal): void {
    this.#sentAt.delete(refusal.revision)
    const back = this.#sent.refused(refusal.revision)
    const name = this.#named(refusal.field)
    const said = `${refusal.message || refusal.reason.replaceAll("_", " ")} – it stays as it was`
    batch(() => {
      this.problems.value = { ...this.problems.value, [name]: said }
      this.change.value = null
      if (back) this.#takeBack(back)
    })
  }

  /** The control beside which it is said; for what has none it is said above them all. */
  #named(field: string | null): string {
    const name = parameterIn(field)
    return this.controls.value.some((control) => control.name === name) ? name : ""
  }

  #takeBack(values: Params): void {
    this.values.value = { ...this.values.value, ...values }
  }

  #problem(error: ApiError): void {
    const name = this.#named(error.field)
    this.problems.value = { ...this.problems.value, [name]: error.message.replace(/^params\.[\w.]+: /, "") }
  }
}
