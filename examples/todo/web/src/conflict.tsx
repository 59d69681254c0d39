/** "Try a conflict": three buttons, and what the two connections did, were told and see. */

import { useDb, useStatus } from "graft-client/react";
import { useState, type ReactNode } from "react";

import { myName } from "./me.js";
import { CopyText } from "./refused.js";
import { OTHER, run, SCENARIOS, type Ending, type Entry, type Scenario, type Who } from "./scenarios.js";

import "./conflict.css";

/** The latest run. */
interface Run {
  readonly scenario: Scenario;
  readonly entries: readonly Entry[];
  readonly ending?: Ending;
  readonly failed?: string;
}

const COLUMNS: readonly (readonly [Who, string])[] = [
  ["you", "You"],
  ["other", OTHER],
];

export function TryConflict(props: { readonly volume: string }): ReactNode {
  const db = useDb();
  const { state } = useStatus();
  const [shown, show] = useState<Run>();
  const [busy, setBusy] = useState(false);
  const start = async (scenario: Scenario) => {
    setBusy(true);
    show({ scenario, entries: [] });
    const update = (change: (run: Run) => Run) => show((now) => (now === undefined ? now : change(now)));
    try {
      const tell = (entry: Entry) => update((now) => ({ ...now, entries: [...now.entries, entry] }));
      const ending = await run(scenario, db, myName(), props.volume, tell);
      update((now) => ({ ...now, ending }));
    } catch (error) {
      const failed = error instanceof Error ? error.message : String(error);
      update((now) => ({ ...now, failed }));
    } finally {
      setBusy(false);
    }
  };
  return (
    <details className="conflict">
      <summary>Try a conflict</summary>
      <p className="hint">
        Each button makes a list for itself, opens a second connection as another person, {OTHER}, and lets both act on the
        same thing. The server takes one and refuses the other. Nothing below is scripted.
      </p>
      <div className="choices">
        {SCENARIOS.map((scenario) => (
          <button
            key={scenario.id}
            type="button"
            // Not `disabled`: that would take the focus away from the one that was pressed.
            aria-disabled={busy || state !== "live"}
            aria-describedby={`about-${scenario.id}`}
            onClick={() => !busy && state === "live" && void start(scenario)}
          >
            <strong>{scenario.title}</strong>
            <span id={`about-${scenario.id}`}>{scenario.about}</span>
          </button>
        ))}
      </div>
      {state !== "live" && !busy && <p className="hint">This wants a connection to the server.</p>}
      <p className="verdict" role="status" aria-live="polite">
        {shown !== undefined && verdict(shown)}
      </p>
      {shown !== undefined && <Timeline run={shown} />}
    </details>
  );
}

function verdict({ scenario, ending, failed }: Run): string {
  if (failed !== undefined) return `${scenario.title}: it could not be played to its end: ${failed}.`;
  if (ending === undefined) return `${scenario.title}: under way…`;
  const told = ending.refused.length === 0 ? "Nobody was refused." : ending.refused.join(" ");
  return `${told} ${ending.agree ? "Both see the same list." : "The two do not see the same list."}`;
}

function Timeline(props: { readonly run: Run }): ReactNode {
  const { scenario, entries, ending } = props.run;
  return (
    <section className="timeline" aria-label={scenario.title}>
      <div className="heads" aria-hidden="true">
        {COLUMNS.map(([who, name]) => (
          <h3 key={who}>{name}</h3>
        ))}
      </div>
      <ol>
        {entries.map(({ who, kind, text, kept }, index) => (
          <li key={index} className={`${who} ${kind}`}>
            <span className="visually-hidden">{who === "you" ? "You: " : `${OTHER}: `}</span>
            {text}
            {kept !== undefined && (
              <p className="kept-text">
                The text is not lost: “{kept}” <CopyText text={kept} />
              </p>
            )}
          </li>
        ))}
      </ol>
      {ending !== undefined && (
        <>
          <h3 className="remains">What remains in the list</h3>
          <div className="heads ends">
            {COLUMNS.map(([who, name]) => (
              <ul key={who} aria-label={`${name}: what remains in the list`}>
                {ending.sees[who].length === 0 && <li className="none">nothing</li>}
                {ending.sees[who].map((line) => (
                  <li key={line}>{line}</li>
                ))}
              </ul>
            ))}
          </div>
        </>
      )}
    </section>
  );
}
