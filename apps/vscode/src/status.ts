/** What the status bar says of the last completion. */

import type { Timings } from "./client.js";

export interface Status {
  readonly text: string;
  readonly why: string;
}

export function status(model: string, timings: Timings): Status {
  const parts = [model];
  const speed = perSecond(timings);
  if (speed !== undefined) parts.push(`${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tok/s`);
  const accepted = share(timings);
  if (accepted !== undefined) parts.push(`${Math.round(100 * accepted)} % accepted`);
  return { text: parts.join("  "), why: why(timings) };
}

/** One sentence: what took most of the time. */
export function why(timings: Timings): string {
  const { prompt_n = 0, prompt_ms = 0, predicted_n = 0, predicted_ms = 0 } = timings;
  if (prompt_n === 0 && predicted_n === 0) return "No completion yet.";
  if (prompt_ms > predicted_ms)
    return `Reading ${prompt_n} tokens that were new took ${Math.round(prompt_ms)} ms, writing ${Math.round(predicted_ms)} ms.`;
  const accepted = share(timings);
  const drafts =
    accepted === undefined
      ? "nothing was drafted"
      : `${Math.round(100 * accepted)} % of ${timings.draft_n} drafted tokens were accepted`;
  return `Writing ${predicted_n} tokens took ${Math.round(predicted_ms)} ms; ${drafts}.`;
}

function perSecond({ predicted_n, predicted_ms }: Timings): number | undefined {
  return predicted_n && predicted_ms ? (1000 * predicted_n) / predicted_ms : undefined;
}

function share({ draft_n, draft_n_accepted }: Timings): number | undefined {
  return draft_n ? (draft_n_accepted ?? 0) / draft_n : undefined;
}
