/** The page: its connection, and which list the URL names. */

import { connect, type Db, type PendingMutation } from "graft-client";
import { GraftProvider, usePending, useQuery, useStatus } from "graft-client/react";
import { useCallback, useEffect, useState, useSyncExternalStore, type ReactNode } from "react";

import { TryConflict } from "./conflict.js";
import { Lists } from "./lists.js";
import { shownLists, type List } from "./model.js";
import { noteRejection } from "./notes.js";
import { Presence } from "./presence.js";
import { RefusedTexts } from "./refused.js";
import { ConnectionBanner, StatusLine } from "./status.js";
import { Tasks } from "./tasks.js";

const VOLUME = new URLSearchParams(location.search).get("volume") ?? "todo";

function open(): Db {
  return connect({ url: location.origin, volume: VOLUME, onRejected: noteRejection });
}

export function App(): ReactNode {
  // Open as long as the page: leaving it closes the socket.
  const [db, setDb] = useState(open);
  const [lost, setLost] = useState<readonly PendingMutation[]>([]);
  const startOver = useCallback(async () => {
    setLost(await db.discard());
    setDb(open());
  }, [db]);
  return (
    <GraftProvider db={db}>
      <Page startOver={startOver} lost={lost} forgetLost={() => setLost([])} />
    </GraftProvider>
  );
}

function Page(props: {
  readonly startOver: () => Promise<void>;
  readonly lost: readonly PendingMutation[];
  readonly forgetLost: () => void;
}): ReactNode {
  const selected = useSelectedList();
  const lists = useQuery<List>("SELECT id, name, capacity FROM lists LEFT JOIN capacities ON list = id ORDER BY name, id");
  const shown = shownLists(lists.rows, lists.at?.seq, usePending());
  const list = shown.find(({ id }) => id === selected);
  useEffect(() => {
    document.title = list === undefined ? "Todo" : `${list.name} · Todo`;
  }, [list?.name]);
  return (
    <div className={selected === undefined ? "page at-home" : "page in-list"}>
      <header className="top">
        <a className="brand" href="#/">
          <img src="/icon.svg" alt="" width="28" height="28" />
          Todo
        </a>
        <Presence />
        <StatusLine />
      </header>
      <ConnectionBanner startOver={props.startOver} />
      {props.lost.length > 0 && (
        <div className="banner warn" role="status">
          <p>
            {props.lost.length === 1 ? "One change was" : `${props.lost.length} changes were`} given up:{" "}
            {props.lost.map(describe).join(", ")}.
          </p>
          <button type="button" onClick={props.forgetLost}>
            Put away
          </button>
        </div>
      )}
      {selected === undefined && <RefusedTexts at={() => true} />}
      <div className="columns">
        <Lists lists={shown} selected={selected} result={lists} />
        <main>
          {selected === undefined ? (
            <p className="hint home-hint">Choose a list, or create one.</p>
          ) : (
            <ListView key={selected} id={selected} list={list} loading={lists.loading} />
          )}
        </main>
      </div>
      <TryConflict volume={VOLUME} />
    </div>
  );
}

function ListView(props: { readonly id: string; readonly list: List | undefined; readonly loading: boolean }): ReactNode {
  const { state } = useStatus();
  if (props.list === undefined && !props.loading && state === "live") {
    return (
      <div className="empty">
        <p>There is no list here. The link may be wrong, or its list was made on another server.</p>
        <p>
          <a href="#/">All lists</a>
        </p>
      </div>
    );
  }
  return <Tasks list={props.id} name={props.list?.name} capacity={props.list?.capacity ?? null} />;
}

/** `add_task “Milk”`, for changes that were given up. */
function describe({ reducer, args }: PendingMutation): string {
  const what = args["title"] ?? args["name"];
  return reducer.replaceAll("_", " ") + (typeof what === "string" ? ` “${what}”` : "");
}

/** The list in the URL: `#/list/ID`. */
function useSelectedList(): string | undefined {
  const hash = useSyncExternalStore(
    (changed) => {
      window.addEventListener("hashchange", changed);
      return () => window.removeEventListener("hashchange", changed);
    },
    () => location.hash,
  );
  const id = /^#\/list\/(.+)$/.exec(hash)?.[1];
  if (id === undefined) return undefined;
  try {
    return decodeURIComponent(id);
  } catch {
    return id; // A mangled link names a list that does not exist, and the page says so.
  }
}
