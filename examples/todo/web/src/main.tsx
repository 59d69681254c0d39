import { createRoot } from "react-dom/client";

import { App } from "./app.js";
import "./mutations.js";
import "./style.css";

const root = document.getElementById("root");
if (root === null) throw new Error("index.html has no #root");
createRoot(root).render(<App />);

// The page opens offline too. Without a service worker (plain HTTP from another machine) it needs the server.
if (import.meta.env.PROD && "serviceWorker" in navigator) {
  navigator.serviceWorker.register("/sw.js").catch((error: unknown) => console.warn("the page is not kept for offline use:", error));
}
