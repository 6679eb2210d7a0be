// How the page is built: into the Python package that serves it, with hashed names, and nothing inlined
// that a strict Content-Security-Policy would refuse.
import { defineConfig } from "vite"

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../services/ingest/playground",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    target: "es2022",
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: {
    proxy: {
      "^/(v1|whip|webrtc|hls|ts|docs|openapi.json)": {
        target: process.env.SLUICE_URL ?? "http://localhost:8000",
      },
    },
  },
})
