// The test pattern: colours, movement, a clock, and below them the time as cells that a machine can read.

import { CELLS, cellsOf, timeOf } from "../pure/timecode.ts"

// Where the cells are, as shares of the picture: away from its edges, which painters fray.
const PLACE = { left: 0.05, top: 0.895, width: 0.9, height: 0.05 } as const
const SAMPLES = 4 // pixels that a cell is read from, a side

export function drawPattern(pen: CanvasRenderingContext2D, width: number, height: number, ms: number): void {
  const time = ms / 1000
  const sky = pen.createLinearGradient(0, 0, width, height)
  for (const stop of [0, 0.35, 0.7, 1])
    sky.addColorStop(stop, `hsl(${(200 + stop * 140 + time * 12) % 360} 62% 46%)`)
  pen.fillStyle = sky
  pen.fillRect(0, 0, width, height)

  for (let ridge = 0; ridge < 4; ridge++) {
    pen.fillStyle = `hsl(${(215 + ridge * 26 + time * 12) % 360} 55% ${34 - ridge * 6}%)`
    pen.beginPath()
    pen.moveTo(0, height)
    for (let x = 0; x <= width; x += width / 32) {
      const along = (x / width) * 6 + time * (0.25 + ridge * 0.16) + ridge * 2
      pen.lineTo(x, height * (0.56 + ridge * 0.11 + 0.07 * Math.sin(along) + 0.03 * Math.sin(along * 2.7)))
    }
    pen.lineTo(width, height)
    pen.fill()
  }

  const radius = height * 0.13
  const [x, y] = [width * (0.5 + 0.34 * Math.cos(time * 0.9)), height * (0.34 + 0.16 * Math.sin(time * 1.8))]
  pen.fillStyle = `hsl(${(48 + time * 12) % 360} 96% 66%)`
  pen.beginPath()
  pen.arc(x, y, radius, 0, 2 * Math.PI)
  pen.fill()

  const bars = ["#fff", "#fd0", "#0dd", "#0b4", "#d3c", "#d22", "#22c", "#111"]
  const bar = (width * 0.28) / bars.length
  bars.forEach((colour, index) => {
    pen.fillStyle = colour
    pen.fillRect(width * 0.05 + index * bar, height * 0.745, bar + 1, height * 0.1)
  })

  pen.fillStyle = "#fff"
  pen.textAlign = "right"
  pen.textBaseline = "top"
  pen.font = `600 ${Math.round(height * 0.11)}px ui-monospace, Menlo, Consolas, monospace`
  pen.fillText(clock(new Date()), width * 0.95, height * 0.745)

  drawTime(pen, width, height, ms)
}

function clock(now: Date): string {
  const two = (value: number) => String(value).padStart(2, "0")
  const tenth = Math.floor(now.getMilliseconds() / 100)
  return `${two(now.getHours())}:${two(now.getMinutes())}:${two(now.getSeconds())}.${tenth}`
}

function drawTime(pen: CanvasRenderingContext2D, width: number, height: number, ms: number): void {
  const [left, top] = [width * PLACE.left, height * PLACE.top]
  const cell = (width * PLACE.width) / CELLS
  pen.fillStyle = "#000"
  pen.fillRect(left, top, cell * CELLS, height * PLACE.height)
  pen.fillStyle = "#fff"
  cellsOf(ms).forEach((light, index) => {
    if (light === 1) pen.fillRect(left + index * cell, top, cell, height * PLACE.height)
  })
}

/** Reads the time that a pattern's picture carries, however it was scaled; null where a pipeline painted over it. */
export class PatternReader {
  readonly #pen: CanvasRenderingContext2D

  constructor() {
    const canvas = document.createElement("canvas")
    canvas.width = CELLS * SAMPLES
    canvas.height = SAMPLES
    const pen = canvas.getContext("2d", { willReadFrequently: true })
    if (pen === null) throw new Error("this browser draws no canvas")
    this.#pen = pen
  }

  read(video: HTMLVideoElement): number | null {
    const { videoWidth: width, videoHeight: height } = video
    if (width === 0) return null
    const tall = height * PLACE.height
    const top = height * PLACE.top + tall / 4 // its upper and lower edges are blurred into the picture
    const [left, wide] = [width * PLACE.left, width * PLACE.width]
    this.#pen.drawImage(video, left, top, wide, tall / 2, 0, 0, CELLS * SAMPLES, SAMPLES)
    const { data } = this.#pen.getImageData(0, 0, CELLS * SAMPLES, SAMPLES)
    return timeOf(Array.from({ length: CELLS }, (_, cell) => brightness(data, cell)))
  }
}

// The middle of a cell: its sides are blurred into its neighbours.
function brightness(data: Uint8ClampedArray, cell: number): number {
  let sum = 0
  for (let row = 0; row < SAMPLES; row++) {
    for (let column = 1; column < SAMPLES - 1; column++) {
      const at = 4 * (row * CELLS * SAMPLES + cell * SAMPLES + column)
      sum += 0.3 * (data[at] ?? 0) + 0.59 * (data[at + 1] ?? 0) + 0.11 * (data[at + 2] ?? 0)
    }
  }
  return sum / (SAMPLES * (SAMPLES - 2))
}
