-- For wrk: posts the photos of a folder in turn. wrk ... -s post_photos.lua URL -- FOLDER [NAME]
-- With NAME as a form that has a file of this name, else as the body itself.
local photos, turn = {}, 0
local edge = "----photo"

function init(args)
  for path in io.popen('ls "' .. args[1] .. '"/*'):lines() do
    local file = io.open(path, "rb")
    local kind, body = "image/jpeg", file:read("*a")
    file:close()
    if args[2] then
      kind = "multipart/form-data; boundary=" .. edge
      body = "--" .. edge .. '\r\nContent-Disposition: form-data; name="' .. args[2] .. '"; filename="a.jpg"\r\n'
        .. "Content-Type: image/jpeg\r\n\r\n" .. body .. "\r\n--" .. edge .. "--\r\n"
    end
    photos[#photos + 1] = wrk.format("POST", nil, { ["Content-Type"] = kind }, body)
  end
end

function request()
  turn = turn % #photos + 1
  return photos[turn]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %f, "not_2xx": %d, "broken": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
