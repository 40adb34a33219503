-- Health of an InvokerPolicy (run-invoker.dev) for Argo CD.
-- https://argo-cd.readthedocs.io/en/stable/operator-manual/health/#custom-health-checks
local hs = { status = "Progressing", message = "waiting for the operator" }
local status = obj.status
if obj.spec ~= nil and obj.spec.suspend then
  hs.status = "Suspended"
  hs.message = "suspended: nothing is read and nothing is written"
  return hs
end
if status == nil or status.conditions == nil then
  return hs
end
local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local function is(type)
  return conditions[type] ~= nil and conditions[type].status == "True"
end
if is("Stalled") then
  -- An object that cannot be read has no generation that could be observed.
  hs.status = "Degraded"
  hs.message = conditions.Stalled.message
  return hs
end
if status.observedGeneration ~= obj.metadata.generation then
  hs.message = "the operator has not seen the last change yet"
  return hs
end
if is("Ready") then
  hs.status = "Healthy"
  hs.message = conditions.Ready.message
  if is("Drifted") then
    hs.message = conditions.Drifted.message
  end
elseif is("Reconciling") then
  hs.message = conditions.Reconciling.message
elseif conditions.Ready ~= nil and conditions.Ready.status == "False" then
  hs.status = "Degraded"
  hs.message = conditions.Ready.message
end
return hs
