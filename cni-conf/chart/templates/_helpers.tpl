{{- define "podweir.labels" -}}
app.kubernetes.io/name: podweir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "podweir.selector" -}}
app.kubernetes.io/name: podweir
app.kubernetes.io/component: node
{{- end }}

{{- define "podweir.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}
