/** A real `graft serve`, and a wire in front of it that can be cut. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { access, mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, connect as dial, type AddressInfo, type Server as NetServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

const ROOT = resolve(import.meta.dirname, "../../..");

/** What `cargo xtask test` hands over, or what a build left in `target/`. */
export const GRAFT = process.env["GRAFT_BIN"] ?? join(ROOT, "target/debug/graft");
const REDUCERS = process.env["GRAFT_REDUCERS"] ?? join(ROOT, "target/reducers");

/** A server process. */
export class Server {
  readonly store: string;
  readonly listen: string;
  readonly url: string;
  readonly #child: ChildProcess;

  private constructor(store: string, url: string, child: ChildProcess) {
    this.store = store;
    this.url = url;
    this.listen = new URL(url).host;
    this.#child = child;
  }

  /** Starts one and waits until it names its URL. `presenceTtl` is in seconds. */
  static async start(store = "memory:", listen = "127.0.0.1:0", presenceTtl = 90): Promise<Server> {
    await access(GRAFT).catch(() => {
      throw new Error(`${GRAFT} is not there; \`cargo build -p graft-cli\` makes it, or set GRAFT_BIN`);
    });
    const child = spawn(GRAFT, ["serve", "--store", store, "--listen", listen, "--presence-ttl", String(presenceTtl)], { stdio: ["ignore", "pipe", "pipe"] });
    let log = "";
    child.stderr.on("data", (text: Buffer) => (log += text.toString()));
    for await (const line of createInterface({ input: child.stdout })) {
      const url = /listening on (\S+)/.exec(line)?.[1];
      if (url !== undefined) return new Server(store, url, child);
    }
    throw new Error(`graft serve ended before it listened:\n${log}`);
  }

  /** Creates the volume and puts the todo example's reducers in force. */
  async deploy(volume: string): Promise<void> {
    const path = join(REDUCERS, "todo.wasm");
    const module = await readFile(path).catch(() => {
      throw new Error(`${path} is not there; \`cargo xtask wasm\` makes it, or set GRAFT_REDUCERS`);
    });
    const answer = await fetch(`${this.url}/v1/volumes/${volume}/modules`, { method: "POST", body: module });
    if (!answer.ok) throw new Error(`deploy: ${answer.status} ${await answer.text()}`);
  }

  /** kill -9. */
  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await exited;
  }
}

/** A directory that is gone after the test. */
export async function temporaryStore(): Promise<{ store: string; remove: () => Promise<void> }> {
  const dir = await mkdtemp(join(tmpdir(), "graft-client-"));
  return { store: `file://${dir}`, remove: () => rm(dir, { recursive: true, force: true }) };
}

/** A TCP proxy. While it is cut, connections break and new ones are refused. */
export class Wire {
  readonly #server: NetServer;
  readonly #sockets = new Set<Socket>();
  #cut = false;
  /** Bytes that came from clients. */
  fromClients = "";

  private constructor(server: NetServer) {
    this.#server = server;
  }

  static async to(target: Server): Promise<Wire> {
    const { hostname, port } = new URL(target.url);
    const server = createServer();
    const wire = new Wire(server);
    server.on("connection", (near) => {
      if (wire.#cut) return near.destroy();
      const far = dial(Number(port), hostname);
      for (const [from, to] of [[near, far], [far, near]] as const) {
        wire.#sockets.add(from);
        from.on("data", (bytes) => to.write(bytes));
        // A broken half ends the other; that is all an error means here.
        from.on("error", () => to.destroy());
        from.on("close", () => {
          wire.#sockets.delete(from);
          to.destroy();
        });
      }
      near.on("data", (bytes) => (wire.fromClients += bytes.toString("latin1")));
      return undefined;
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return wire;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  cut(): void {
    this.#cut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend(): void {
    this.#cut = false;
  }

  async close(): Promise<void> {
    this.cut();
    this.#server.close();
    await once(this.#server, "close");
  }
}
