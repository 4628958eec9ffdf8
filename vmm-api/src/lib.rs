//! What the VMM's REST API carries: the configuration of a guest, requests and answers.
//!
//! Paths, verbs, JSON fields and status codes are those of Cloud Hypervisor's published OpenAPI description (REST API
//! version 0.3), so that its client can drive this VMM; what is added beside them says so. Unknown fields are refused
//! by name. Pure: reads no file, opens nothing.
#![forbid(unsafe_code)]
