/** What the connection does, in one line; and a banner where a person should know more. */

import { usePending, useStatus } from "graft-client/react";
import { useState, type ReactNode } from "react";

/** Ends of a connection after which what waits must not be sent, by code; see docs/client.md. */
const STALE: Readonly<Record<string, string>> = {
  volume_changed: "The server now keeps another database under this name.",
  history_lost: "The server has lost changes that it had called saved.",
  cloned_client: "Another copy of this browser's data has written in its name.",
};

export function StatusLine(): ReactNode {
  const { state } = useStatus();
  const pending = usePending();
  const count = pending.length;
  const text = {
    connecting: "Connecting…",
    live: count === 0 ? "All changes saved" : `Saving ${changes(count)}…`,
    offline: count === 0 ? "Offline" : `Offline, ${count} waiting`,
    ended: "Stopped",
  }[state];
  return (
    <p className={`status ${state}`} role="status" data-state={state} data-pending={count}>
      <span className="dot" aria-hidden="true" />
      {text}
    </p>
  );
}

export function ConnectionBanner(props: { readonly startOver: () => Promise<void> }): ReactNode {
  const { state, error, pending } = useStatus();
  const [working, setWorking] = useState(false);
  if (state === "offline") {
    return (
      <div className="banner" role="status">
        <p>
          <strong>You are offline.</strong>{" "}
          {pending === 0
            ? "Go on working: changes wait on this device until the server is back."
            : `${changes(pending)} ${pending === 1 ? "waits" : "wait"} on this device and will be sent when the server is back.`}
        </p>
      </div>
    );
  }
  if (state !== "ended") return null;
  const stale = error === undefined ? undefined : STALE[error.code];
  const startOver = () => {
    setWorking(true);
    void props.startOver().finally(() => setWorking(false));
  };
  return (
    <div className="banner warn" role="alert">
      <div>
        <p>
          <strong>{stale ?? "Not connected."}</strong>{" "}
          {stale === undefined
            ? (error?.message ?? "The connection has ended.")
            : pending === 0
              ? "Nothing waits on this device."
              : `${changes(pending)} on this device ${pending === 1 ? "was" : "were"} not sent, and starting over gives ${pending === 1 ? "it" : "them"} up.`}
        </p>
        {stale !== undefined && (
          <details>
            <summary>Details</summary>
            {error?.message}
          </details>
        )}
      </div>
      {stale !== undefined ? (
        <button type="button" onClick={startOver} disabled={working}>
          Start over
        </button>
      ) : (
        <button type="button" onClick={() => location.reload()}>
          Reload
        </button>
      )}
    </div>
  );
}

function changes(count: number): string {
  return count === 1 ? "1 change" : `${count} changes`;
}
