// The server's API: JSON calls, and answers that are streamed.

/** An answer of the server that is an error; the message is the server's own. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const KEY = "mgsd-key";
const dialog = document.getElementById("key-dialog");
const field = document.getElementById("key");
let asking = null;

/** Asks the user for the key, once for all calls that wait for it. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function request(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    if (response.status === 401) {
      await askForKey();
      continue;
    }
    let message = `the server answered with status ${response.status}`;
    try {
      message = (await response.json()).error.message;
    } catch { /* not JSON: the status has to do */ }
    throw new ApiError(response.status, message);
  }
}

/** A JSON object for a JSON object; without a body a GET. */
export async function call(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** Asks the chat API and hands each piece `{text, ids}` to `onPiece`; gives the finish reason and the usage. */
export async function ask(body, signal, onPiece) {
  const options = { stream: true, stream_options: { include_usage: true }, return_token_ids: true, user: "page" };
  const response = await request("/v1/chat/completions", { ...body, ...options }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  const end = { finish: null, usage: null };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return end;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const object = JSON.parse(data);
      if (object.error) throw new ApiError(500, object.error.message);
      end.usage = object.usage ?? end.usage;
      const choice = object.choices[0];
      if (!choice) continue;
      end.finish = choice.finish_reason ?? end.finish;
      onPiece({ text: choice.delta.content ?? "", ids: choice.token_ids ?? [] });
    }
  }
}
