// Requests to the public API.

export class Refused extends Error {
  constructor(status, problem, retryAfterS) {
    super(problem ? `${problem.title}: ${problem.detail}` : `The service answered ${status}.`);
    this.status = status;
    this.code = problem?.code ?? "unknown";
    this.retryAfterS = retryAfterS;
  }
}

export async function post(path, body, signal) {
  const response = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

export async function get(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const problem = await response.json().catch(() => null);
  return new Refused(response.status, problem, Number(response.headers.get("Retry-After")) || 1);
}

/** Returns the request as a command for a shell. */
export function curl(path, body) {
  const quoted = JSON.stringify(body).replaceAll("'", String.raw`'\''`);
  return `curl ${location.origin}${path} -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}
