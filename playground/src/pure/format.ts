// Figures as a person reads them. Pure; money comes in micro-units of its currency.

const MICRO = 1_000_000

/** What something cost so far: enough places that a second of it moves the last one. */
export function cost(micro: number, currency: string): string {
  return currencyOf(currency, 4).format(micro / MICRO)
}

export function balance(micro: number, currency: string): string {
  return currencyOf(currency, 2).format(Math.floor(micro / 10_000) / 100)
}

/** A price a minute, for a second's is too small to mean anything to anyone. */
export function pricePerMinute(microPerSecond: number, currency: string): string {
  if (microPerSecond === 0) return "free"
  return `${currencyOf(currency, 3, 2).format((microPerSecond * 60) / MICRO)} a minute`
}

function currencyOf(currency: string, places: number, least = places): Intl.NumberFormat {
  const wanted = { minimumFractionDigits: least, maximumFractionDigits: places }
  try {
    return new Intl.NumberFormat("en", {
      ...wanted,
      style: "currency",
      currency,
      currencyDisplay: "narrowSymbol",
    })
  } catch {
    // A platform may count in something that ISO 4217 has no letters for.
    return new Intl.NumberFormat("en", wanted)
  }
}

export function milliseconds(ms: number): string {
  if (ms >= 10_000) return `${Math.round(ms / 1000)} s`
  return ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`
}

/** 83 s is "1:23"; hours appear when there are any. */
export function duration(ms: number): string {
  const whole = Math.max(0, Math.floor(ms / 1000))
  const [hours, minutes, seconds] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60]
  const two = (value: number) => String(value).padStart(2, "0")
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds)}` : `${minutes}:${two(seconds)}`
}

export function bitrate(bitsPerSecond: number): string {
  if (bitsPerSecond >= 999_500) return `${(bitsPerSecond / 1_000_000).toFixed(1)} Mbit/s`
  return `${Math.round(bitsPerSecond / 1000)} kbit/s`
}
