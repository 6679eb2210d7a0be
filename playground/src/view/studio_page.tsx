// The studio: source and result side by side, what steers them on the right, the figures below.

import { KeyRound, Play, Square } from "lucide"
import mark from "../assets/mark.svg"
import { appliedWords, comingWords, loadingWords, placeWords, troubleOf } from "../pure/condition.ts"
import { balance, milliseconds } from "../pure/format.ts"
import type { Phase, Studio } from "../studio.ts"
import { Elsewhere } from "./elsewhere.tsx"
import { Icon } from "./icon.tsx"
import { KeyDialog } from "./key_dialog.tsx"
import { Messages } from "./messages.tsx"
import { Parameters } from "./parameters.tsx"
import { Pipelines } from "./pipelines.tsx"
import { Readings } from "./readings.tsx"
import { ResultScreen } from "./result_screen.tsx"
import { SourceChoice, SourceScreen } from "./source_screen.tsx"

export function StudioPage({ studio }: { studio: Studio }) {
  return (
    <div class="page">
      <Header studio={studio} />
      <main class="studio">
        <section class="stage" aria-label="Video">
          <div class="screens">
            <SourceScreen studio={studio} />
            <ResultScreen studio={studio} />
          </div>
          <div class="transport">
            <SourceChoice studio={studio} />
            <StartStop studio={studio} />
          </div>
          <Readings studio={studio} />
        </section>
        <section class="panel" aria-label="Pipeline and its parameters">
          <h2>Pipeline</h2>
          <Pipelines studio={studio} />
          <div class="panel-head">
            <h2>Parameters</h2>
            <Changed studio={studio} />
          </div>
          {studio.offer.value && <Parameters studio={studio} />}
        </section>
        <div class="more">
          <Messages studio={studio} />
          <Elsewhere studio={studio} />
        </div>
      </main>
      <Footer />
      <KeyDialog studio={studio} />
      <p class="unseen" role="status" aria-live="polite">
        {announced(studio)}
      </p>
    </div>
  )
}

function Header({ studio }: { studio: Studio }) {
  const money = studio.balance.value
  return (
    <header class="header">
      <h1>
        <img src={mark} alt="" width={28} height={28} />
        Sluice
      </h1>
      <nav aria-label="Platform">
        {money !== null && (
          <span class="balance" title="What is left of this account's credit">
            {balance(money, studio.prices.value.currency)} left
          </span>
        )}
        <a href="/docs">API</a>
        <button
          type="button"
          class={studio.keyNeeded.value ? "primary" : "quiet"}
          onClick={() => {
            studio.asking.value = true
          }}
        >
          <Icon node={KeyRound} size={16} />
          {studio.keyNeeded.value ? "Enter a key" : "Key"}
        </button>
      </nav>
    </header>
  )
}

function StartStop({ studio }: { studio: Studio }) {
  if (studio.running.value || studio.phase.value === "waiting") {
    return (
      <button type="button" class="big stop" onClick={() => void studio.stop()}>
        <Icon node={Square} />
        Stop
      </button>
    )
  }
  const ready = studio.ready.value && studio.offer.value !== null && !studio.keyNeeded.value
  return (
    <button type="button" class="big primary" disabled={!ready} onClick={() => void studio.start()}>
      <Icon node={Play} />
      Start
    </button>
  )
}

function Changed({ studio }: { studio: Studio }) {
  const change = studio.change.value
  const problem = studio.problems.value[""]
  if (problem) return <span class="changed bad">{problem}</span>
  if (change === null) return null
  return (
    <span class="changed" data-state={change.state}>
      {change.state === "sent"
        ? comingWords(change.applies)
        : `in the picture after ${milliseconds(change.ms)}${appliedWords(change.applies)}`}
    </span>
  )
}

const SAID: Readonly<Record<Phase, string>> = {
  idle: "Ready.",
  starting: "Starting.",
  live: "Live.",
  reconnecting: "Connection lost, trying to get it back.",
  waiting: "Waiting to try again.",
  ended: "",
  failed: "",
}

function announced(studio: Studio): string {
  const phase = studio.phase.value
  const told =
    phase === "failed" ? studio.failure.value : phase === "ended" ? studio.ending.value : studio.away.value
  if (told) return `${told.title}. ${told.text}`
  if (studio.keyNeeded.value) return "An API key is needed."
  const trouble = studio.runner.trouble.value
  if (trouble) return `${troubleOf(trouble).title}. ${troubleOf(trouble).action}`
  const place = studio.line.place.value
  // Without the wait, which would be read out each second.
  if (place) return `Waiting for a runner, ${placeWords({ ...place, expected_wait_s: null })}.`
  if (studio.runner.move.value) return "Moved to another runner."
  const loading = studio.runner.loading.value
  // Without the share, which would be read out at each step.
  if (loading) return `${loadingWords({ ...loading, percent: 0 }).replace(/, 0 %$/, "")}.`
  return SAID[phase]
}

function Footer() {
  return (
    <footer>
      Pictures of the pipelines: from “Big Buck Bunny”, © 2008 Blender Foundation, bigbuckbunny.org,{" "}
      <a href="https://creativecommons.org/licenses/by/3.0/" rel="noreferrer">
        CC BY 3.0
      </a>
      , as transformed by them.
    </footer>
  )
}
