{{/* Labels of every object: (dict "root" $ "component" NAME) */}}
{{- define "vse.labels" -}}
{{ include "vse.selector" . }}
app.kubernetes.io/part-of: vse
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Labels that select the pods of a component: (dict "root" $ "component" NAME) */}}
{{- define "vse.selector" -}}
app.kubernetes.io/name: vse
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* User name of a component's service account: (dict "root" $ "component" NAME) */}}
{{- define "vse.user" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:vse-{{ .component }}
{{- end }}
