// A time that a picture carries as a row of light and dark cells, so that its way can be timed. Pure.
//
// Each bit is two cells, dark-light or light-dark: what a filter does to brightness it does to both, and a
// reader compares neighbours instead of guessing a threshold. A checksum tells a code from a painting of one.

const TIME_BITS = 20 // milliseconds, about 17 minutes until they start again
const CHECK_BITS = 6
const POLYNOMIAL = 0b1000011
export const CELLS = 2 * (TIME_BITS + CHECK_BITS)
const SPAN_MS = 2 ** TIME_BITS
const LEAST_CONTRAST = 24

/** One number per cell, 0 dark and 1 light. */
export function cellsOf(ms: number): number[] {
  const time = Math.floor(ms) % SPAN_MS
  const word = time * 2 ** CHECK_BITS + checksum(time)
  const cells: number[] = []
  for (let bit = TIME_BITS + CHECK_BITS - 1; bit >= 0; bit--) {
    const one = Math.floor(word / 2 ** bit) % 2
    cells.push(one, 1 - one)
  }
  return cells
}

/** The time that cells of this brightness (0..255) carry, or null if they carry none. */
export function timeOf(brightness: readonly number[]): number | null {
  if (brightness.length !== CELLS) return null
  let word = 0
  for (let cell = 0; cell < CELLS; cell += 2) {
    const contrast = (brightness[cell] ?? 0) - (brightness[cell + 1] ?? 0)
    if (Math.abs(contrast) < LEAST_CONTRAST) return null
    word = word * 2 + (contrast > 0 ? 1 : 0)
  }
  const time = Math.floor(word / 2 ** CHECK_BITS)
  return checksum(time) === word % 2 ** CHECK_BITS ? time : null
}

/** How long ago `ms` was, across the point where the code starts again. */
export function sinceTime(now: number, ms: number): number {
  return (((now - ms) % SPAN_MS) + SPAN_MS) % SPAN_MS
}

// CRC-6 of ITU-T G.704, x^6 + x + 1: it notices every one and two wrong bits of a code this short.
function checksum(time: number): number {
  let rest = time << CHECK_BITS
  for (let bit = TIME_BITS - 1; bit >= 0; bit--) {
    if (rest & (1 << (bit + CHECK_BITS))) rest ^= POLYNOMIAL << bit
  }
  return rest
}
