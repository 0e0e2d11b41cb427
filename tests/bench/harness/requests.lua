-- wrk's side of a closed loop: posts the lines of a file in order, a line per request, and repeats them.
-- The argument after `--` is the file. Requests are built before the run, so that sending costs only the socket.

local prepared, position = {}, 0

function init(args)
   local headers = { ["Content-Type"] = "application/json" }
   for body in io.lines(args[1]) do
      prepared[#prepared + 1] = wrk.format("POST", nil, headers, body)
   end
end

function request()
   position = position % #prepared + 1
   return prepared[position]
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"seconds": %.6f, "answered": %d, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
      summary.duration / 1e6, summary.requests, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
