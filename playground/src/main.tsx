// The page: the studio at `/`, a player alone at `/watch/<playback id>`.

import "@fontsource-variable/geist"
import "./style/base.css"
import "./style/controls.css"
import "./style/parameters.css"
import "./style/studio.css"
import "./style/runner.css"
import "./style/narrow.css"
import { render } from "preact"
import { Studio } from "./studio.ts"
import { StudioPage } from "./view/studio_page.tsx"
import { WatchPage } from "./view/watch_page.tsx"

const page = document.getElementById("page")
if (page === null) throw new Error("index.html has no #page")

const watched = /^\/watch\/([^/]+)\/?$/.exec(location.pathname)?.[1]
if (watched) {
  render(<WatchPage playback={decodeURIComponent(watched)} />, page)
} else {
  const studio = new Studio()
  render(<StudioPage studio={studio} />, page)
  addEventListener("pagehide", () => studio.leave())
  void studio.open()
}
