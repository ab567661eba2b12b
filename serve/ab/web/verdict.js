import { find, say } from "./dom.js";
export function showVerdict(verdict, polite) {
  say(find("verdict-words"), JSON.stringify(verdict).slice(0, 80));
}
