-- Orthanc: send each stable study that has MR images to the daemon. Our own results that come back start no work.
function OnStableStudy(studyId, tags, metadata)
  local instances = ParseJson(RestApiGet('/studies/' .. studyId .. '/instances'))
  for _, instance in ipairs(instances) do
    local modality = ParseJson(RestApiGet('/instances/' .. instance['ID'] .. '/simplified-tags'))['Modality']
    if modality == 'MR' then
      SendToModality(studyId, 'braingemma')
      return
    end
  end
end
