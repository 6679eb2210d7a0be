// The pipelines that can be had, as cards with a picture of what they do.

import type { Offer, Prices } from "../api.ts"
import { pictureOf } from "../known.ts"
import { pricePerMinute } from "../pure/format.ts"
import type { Studio } from "../studio.ts"

export function Pipelines({ studio }: { studio: Studio }) {
  const offers = studio.offers.value ?? []
  return (
    <fieldset class="cards" disabled={studio.running.value}>
      <legend class="unseen">Pipeline</legend>
      {offers.map((offer) => (
        <Card key={offer.pipeline} offer={offer} studio={studio} />
      ))}
    </fieldset>
  )
}

function Card({ offer, studio }: { offer: Offer; studio: Studio }) {
  const { currency, data } = studio.prices.value
  const price = priceOf(data, offer.pipeline)
  return (
    <label class="card" title={offer.description}>
      <input
        type="radio"
        name="pipeline"
        value={offer.pipeline}
        checked={studio.chosen.value === offer.pipeline}
        onChange={() => {
          studio.chosen.value = offer.pipeline
        }}
      />
      <Picture name={offer.pipeline} />
      <span class="card-name">{offer.pipeline}</span>
      <span class="card-note">
        {price ? pricePerMinute(price.micro_per_second, currency) : ""}
        {!studio.running.value && (
          <span data-free={offer.free > 0}>{offer.free > 0 ? `${offer.free} free` : "busy"}</span>
        )}
      </span>
    </label>
  )
}

// "*" is the price of every pipeline that has none of its own.
function priceOf(prices: Prices["data"], pipeline: string) {
  return prices.find((one) => one.pipeline === pipeline) ?? prices.find((one) => one.pipeline === "*")
}

function Picture({ name }: { name: string }) {
  const known = pictureOf(name)
  return known ? <img src={known} alt="" width={480} height={270} /> : <Drawn name={name} />
}

/** A picture for a pipeline that has none: waves whose colours and shape follow from its name. */
function Drawn({ name }: { name: string }) {
  const seed = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 9973, 7)
  const hue = seed % 360
  return (
    <svg class="drawn" viewBox="0 0 160 90" aria-hidden="true">
      <rect width="160" height="90" fill={`hsl(${hue} 45% 30%)`} />
      <circle
        cx={30 + (seed % 100)}
        cy={28 + (seed % 17)}
        r={12 + (seed % 9)}
        fill={`hsl(${(hue + 60) % 360} 75% 70%)`}
      />
      {[0, 1, 2, 3].map((wave) => (
        <path
          key={wave}
          d={ridge(seed, wave)}
          fill={`hsl(${(hue + wave * 18) % 360} ${50 + wave * 4}% ${46 - wave * 8}%)`}
        />
      ))}
    </svg>
  )
}

function ridge(seed: number, wave: number): string {
  const points = Array.from({ length: 17 }, (_, index) => {
    const y = 44 + wave * 11 + 8 * Math.sin(index * 0.55 + seed * 0.7 + wave * 1.9)
    return `${index * 10},${y.toFixed(1)}`
  })
  return `M0,90L${points.join("L")}L160,90Z`
}
