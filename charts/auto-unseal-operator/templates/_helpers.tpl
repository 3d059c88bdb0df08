{{- define "autounseal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "autounseal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "autounseal.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of what lies outside of the release's namespace, where releases of other namespaces have theirs. */}}
{{- define "autounseal.outerName" -}}
{{- printf "%s-%s" .Release.Namespace (include "autounseal.fullname" .) -}}
{{- end -}}

{{- define "autounseal.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "autounseal.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "autounseal.selectorLabels" -}}
app.kubernetes.io/name: {{ include "autounseal.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "autounseal.labels" -}}
{{ include "autounseal.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: controller
app.kubernetes.io/part-of: auto-unseal-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The Lease is the operator's own namesake, one for each class. */}}
{{- define "autounseal.leaseName" -}}
{{- include "autounseal.fullname" . -}}
{{- with .Values.controllerClass -}}-{{ . }}{{- end -}}
{{- end -}}

{{/* What the names of its pods match: Kubernetes cuts what it adds to at 58 characters. */}}
{{- define "autounseal.podNames" -}}
{{- $name := include "autounseal.fullname" . -}}
{{- printf "%s.*" (printf "%s-" $name | trunc 58) -}}
{{- end -}}

{{- define "autounseal.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say in a sentence. */}}
{{- define "autounseal.check" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is required: no container image of auto-unseal-operator is published yet. Build one, push it to a registry of yours and name it here." -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.leaderElect) -}}
{{- fail "replicas above 1 need leaderElect: true: without it each of them would deliver the same bytes and ask the KMS for them." -}}
{{- end -}}
{{- if and .Values.clusterWide .Values.tenantNamespaces -}}
{{- fail "tenantNamespaces and clusterWide contradict each other: name the namespaces, or set clusterWide: true and leave tenantNamespaces empty." -}}
{{- end -}}
{{- if not (or .Values.clusterWide .Values.tenantNamespaces) -}}
{{- fail "tenantNamespaces is empty: name the namespaces that the operator works in, or set clusterWide: true, with which it may read and write every Secret of the cluster." -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service) -}}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service: true; metrics.podMonitor does without." -}}
{{- end -}}
{{- end -}}

{{/* Why each of these is needed: docs/rights.md. */}}
{{- define "autounseal.rules" -}}
- apiGroups: [autounseal.dev]
  resources: [sealconfigs, managedkeys]
  verbs: [list, watch]
- apiGroups: [autounseal.dev]
  resources: [sealconfigs/status, managedkeys/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.rights.storeDeletion }}
- apiGroups: [autounseal.dev]
  resources: [sealconfigs, managedkeys]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [delete]
{{- end }}
{{- if .Values.rights.serviceAccountTokens }}
- apiGroups: [""]
  resources: [serviceaccounts/token]
  verbs: [create]
{{- end }}
{{- if .Values.rights.restarts }}
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
{{- end }}
{{- end -}}
