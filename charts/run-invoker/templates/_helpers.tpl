{{- /* Values that charts after the first one added, by path. `helm upgrade --reuse-values` brings the values of the chart that was
installed, which may have none of them, or some, where --set gives others of the same map. tests/chart.rs holds them to values.yaml. */ -}}
{{- define "run-invoker.added" -}}
shards: 1
metrics.dashboards: {enabled: false, labels: {grafana_dashboard: "1"}, annotations: {}}
events: {subscriptions: [], endpoint: "", interval: 1h, patience: 5m}
inherited: {scopes: [], interval: 15m, impersonate: ""}
settings.approvedBy: tenant
nameOverride: ""
fullnameOverride: ""
extraVolumes: []
extraVolumeMounts: []
podSecurityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
service: {annotations: {}}
extraObjects: []
admission: {enabled: false, mutate: false, selfApproval: {exceptGroup: ""}, sameAccount: {enabled: false, exceptGroup: ""}}
admission.enabled: false
admission.mutate: false
admission.selfApproval: {exceptGroup: ""}
admission.selfApproval.exceptGroup: ""
admission.sameAccount: {enabled: false, exceptGroup: ""}
admission.sameAccount.enabled: false
admission.sameAccount.exceptGroup: ""
{{- end }}

{{- /* Sets those that are absent; every template begins with it. */ -}}
{{- define "run-invoker.values" -}}
{{- range $path, $default := include "run-invoker.added" . | fromYaml }}
{{- $keys := splitList "." $path }}
{{- $at := $.Values }}
{{- range initial $keys }}{{ $at = index $at . }}{{ end }}
{{- if not (hasKey $at (last $keys)) }}{{ $_ := set $at (last $keys) $default }}{{ end }}
{{- end }}
{{- end }}

{{- define "run-invoker.name" -}}
{{- .Values.nameOverride | default .Chart.Name }}
{{- end }}

{{- define "run-invoker.fullname" -}}
{{- $name := include "run-invoker.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}{{ else if contains $name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "run-invoker.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "run-invoker.fullname" .) }}
{{- end }}

{{- define "run-invoker.selector" -}}
app.kubernetes.io/name: {{ include "run-invoker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "run-invoker.labels" -}}
{{ include "run-invoker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "run-invoker.image" -}}
{{- $repository := required "image.repository is not set, and no image is published yet: build one with `make image`, push it to your registry, and pass --set image.repository=REGISTRY/run-invoker (docs/image.md)" .Values.image.repository }}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}{{ else }}{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The binding of a ValidatingAdmissionPolicy, from the root, the end of its name, and whether each object of its paramKind in the
namespace is a parameter. */ -}}
{{- define "run-invoker.bind" -}}
{{- $root := first . }}
{{- $name := printf "%s-%s" (include "run-invoker.fullname" $root) (index . 1) -}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}
  labels: {{- include "run-invoker.labels" $root | nindent 4 }}
spec:
  policyName: {{ $name }}
  validationActions: [Deny]
  {{- if last . }}
  paramRef: {selector: {}, parameterNotFoundAction: Allow}
  {{- end }}
{{- end }}

{{- /* A condition that leaves members of a group out. */ -}}
{{- define "run-invoker.unless" -}}
{{- with . }}
  - name: not-of-group
    expression: "!('{{ . }}' in request.userInfo.?groups.orValue([]))"
{{- end }}
{{- end }}
