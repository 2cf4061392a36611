-- Orthanc: send each stable study to the daemon when MR images came to it. Our own results that come back do not count.
-- The number of images that were sent is kept as metadata 4711 of the study, so that results start no transfer.
local SENT = 4711

local function CountImages(studyId)
  local count = 0
  for _, series in ipairs(ParseJson(RestApiGet('/studies/' .. studyId .. '/series', true))) do
    local tags = series['MainDicomTags']
    if tags['Modality'] == 'MR' and tags['Manufacturer'] ~= 'BrainGemma3D for PACS' then
      count = count + #series['Instances']
    end
  end
  return count
end

local function CountSent(studyId)
  for _, name in ipairs(ParseJson(RestApiGet('/studies/' .. studyId .. '/metadata', true))) do
    if tostring(name) == tostring(SENT) then
      return tonumber(RestApiGet('/studies/' .. studyId .. '/metadata/' .. SENT, true))
    end
  end
  return 0
end

function OnStableStudy(studyId, tags, metadata)
  local count = CountImages(studyId)
  if count == 0 or count == CountSent(studyId) then
    return
  end
  -- A job of Orthanc's own: the callback does not wait for it, and it can be resubmitted where it fails.
  local job = {Resources = {studyId}, Synchronous = false}
  RestApiPost('/modalities/braingemma/store', DumpJson(job, true), true)
  RestApiPut('/studies/' .. studyId .. '/metadata/' .. SENT, tostring(count), true)
end
