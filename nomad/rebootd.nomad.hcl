# rebootd as a Nomad service job: three daemons in three racks, one of which leads.
#
#   nomad job run -var-file=nomad/vars/dc1.vars.hcl nomad/rebootd.nomad.hcl
#
# One job per data center, each with its own Consul. Nothing is kept on a host: state and locks are in Consul.
#
# Two services, on purpose. `rebootd` is what agents look for; each daemon registers it itself, because the session that
# makes it leader hangs on that registration's check (docs/decisions.md). `rebootd-http` below is Nomad's: it decides
# whether a deployment is healthy. So neither writes over the other. Metrics are scraped from `rebootd` (docs/monitoring.md).
#
# The policy is not in here: it is in Consul (`rebootctl policy apply`), so that changing it restarts nothing.

variable "datacenters" {
  type        = list(string)
  description = "The data center (or centers that share one Consul data center) to run in."
}

variable "region" {
  type    = string
  default = "global"
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "daemons" {
  type        = number
  default     = 3
  description = "How many. One is enough to work; three survive a rack and a rolling update."
}

variable "per_rack" {
  type        = number
  default     = 1
  description = "Daemons in one rack at most. Raise it only where there are fewer racks than daemons."
}

variable "artifact" {
  type        = string
  default     = ""
  description = "URL of dist/rebootd. Empty: `command` is on the hosts already."
}

variable "artifact_checksum" {
  type        = string
  default     = ""
  description = "For example sha256:... of that file; the download is refused if it differs."
}

variable "command" {
  type        = string
  default     = "/usr/local/bin/rebootd"
  description = "Where rebootd is on the hosts when there is no artifact."
}

variable "driver" {
  type        = string
  default     = "exec"
  description = "exec (own file system view and limits) or raw_exec. Both need Python 3.11 or later on the host."

  validation {
    condition     = var.driver == "exec" || var.driver == "raw_exec"
    error_message = "The driver must be exec or raw_exec."
  }
}

variable "user" {
  type        = string
  default     = "nobody"
  description = "Who it runs as. It needs no rights on the host; with raw_exec it must be able to pass Nomad's data_dir (mode 0711)."
}

variable "uid" {
  type        = number
  default     = 65534
  description = "The number of `user`, to whom the files with secrets belong (65534: nobody)."
}

variable "port" {
  type        = number
  default     = 8473
  description = "The HTTP port. Agents learn it from Consul; operators and firewalls like it fixed. 0: any free one."
}

variable "service" {
  type        = string
  default     = "rebootd"
  description = "The Consul service that agents look for. Several fleets on one Consul need several names."
}

variable "prefix" {
  type        = string
  default     = "rebootd/"
  description = "Where in Consul's key-value store this fleet is."
}

variable "consul_address" {
  type        = string
  default     = "http://127.0.0.1:8500"
  description = "The Consul agent of the same host."
}

variable "consul_token_template" {
  type        = string
  default     = ""
  description = "A template that renders to the Consul ACL token. Empty: see consul_token_file."
}

variable "consul_token_file" {
  type        = string
  default     = ""
  description = "A file on the hosts with the Consul ACL token, readable to `user`. Empty too: Consul has no ACLs."
}

variable "tls_ca" {
  type        = string
  default     = ""
  description = "A file on the hosts: the authority of machines' and people's certificates. With it (or tls_templates) the daemons speak https only (docs/security.md)."
}

variable "tls_cert" {
  type        = string
  default     = ""
  description = "A file on the hosts: this daemon's certificate, a server's of rebootctl tls."
}

variable "tls_key" {
  type        = string
  default     = ""
  description = "A file on the hosts: its key, mode 0600 and owned by `user`."
}

variable "tls_crl" {
  type        = string
  default     = ""
  description = "A file on the hosts: the revocation list. Empty: none."
}

variable "tls_templates" {
  type        = map(string)
  default     = {}
  description = "In place of the four files: templates named ca, cert, key and, if there is a list, crl, for example from Vault or Nomad Variables."
}

variable "token_template" {
  type        = string
  default     = ""
  description = "A template that renders to the token that agents and operators share, for example from Nomad Variables."
}

variable "token_file" {
  type        = string
  default     = ""
  description = "A file on the hosts with that token, readable to `user`. Without certificates one of the two is needed, else only loopback is served."
}

variable "nomad_address" {
  type        = string
  default     = "unix://$${NOMAD_SECRETS_DIR}/api.sock"
  description = "Nomad's API, for drains (drains.nomad in the policy). The default is Nomad's Task API: always the client of the same host, with the job's own identity as token."
}

variable "nomad_token_template" {
  type        = string
  default     = ""
  description = "A template that renders to a Nomad ACL token for that. Empty: the job's own identity, to which an ACL policy can be attached (nomad/acl/rebootd.policy.hcl)."
}

variable "power_template" {
  type        = string
  default     = ""
  description = "A template that renders to the Redfish user and password, a line each. Empty: nothing is power-cycled."
}

variable "audit_log" {
  type        = string
  default     = ""
  description = "Where each daemon writes who changed what, for example /audit/audit.log. It must outlive the allocation: see audit_volume."
}

variable "audit_volume" {
  type        = string
  default     = ""
  description = "A host volume that is mounted at /audit (driver exec). Without one, audit_log names a folder of the host (driver raw_exec)."
}

variable "log_level" {
  type    = string
  default = "info"
}

variable "cpu" {
  type    = number
  default = 500
}

variable "memory" {
  type        = number
  default     = 400
  description = "MB. A leader of 10,000 machines stays below 300."
}

locals {
  # Of the files that there are, flag by flag: what is rendered goes before what is on the hosts.
  tls_files = {
    for name, path in { ca = var.tls_ca, cert = var.tls_cert, key = var.tls_key, crl = var.tls_crl } :
    name => contains(keys(var.tls_templates), name) ? "${NOMAD_SECRETS_DIR}/tls-${name}.pem" : path
    if path != "" || contains(keys(var.tls_templates), name)
  }
  tls = length(keys(local.tls_files)) > 0

  command           = var.artifact == "" ? var.command : "local/rebootd"
  token_file        = var.token_template == "" ? var.token_file : "${NOMAD_SECRETS_DIR}/token"
  consul_token_file = var.consul_token_template == "" ? var.consul_token_file : "${NOMAD_SECRETS_DIR}/consul-token"
}

job "rebootd" {
  type        = "service"
  region      = var.region
  namespace   = var.namespace
  datacenters = var.datacenters

  # Machines that rebooted wait for this job, so it may push others aside.
  priority = 90

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  # No Consul agent, no leadership.
  constraint {
    attribute = "${attr.consul.version}"
    operator  = "is_set"
  }

  # A rack is worked on as one, so no rack may hold more than its share. A client without the meta key is not used.
  constraint {
    operator  = "distinct_property"
    attribute = "${meta.rack}"
    value     = "${var.per_rack}"
  }

  spread {
    attribute = "${meta.rack}"
    weight    = 100
  }

  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "2m"
    progress_deadline = "10m"
    stagger           = "10s"
    auto_revert       = true
    canary            = 0
  }

  # rebootd drains the hosts it runs on like any other.
  migrate {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "5s"
    healthy_deadline = "2m"
  }

  # It must never be given up on: somewhere there is a host that can run it.
  reschedule {
    delay          = "5s"
    delay_function = "exponential"
    max_delay      = "2m"
    unlimited      = true
  }

  group "rebootd" {
    count = var.daemons

    restart {
      attempts = 3
      interval = "2m"
      delay    = "2s"
      mode     = "fail"
    }

    network {
      port "http" {
        static = var.port
      }

      # With certificates Nomad's check has none to show, so it asks the daemon's own health listener: plain HTTP, on
      # loopback only, and nothing but whether the daemon's loop ticks.
      port "health" {}
    }

    service {
      name    = "${var.service}-http"
      port    = local.tls ? "health" : "http"
      address = local.tls ? "127.0.0.1" : ""

      check {
        name     = "answers"
        type     = "http"
        path     = local.tls ? "/health" : "/healthz"
        interval = "5s"
        timeout  = "2s"

        # Hung for half a minute: start it again. Its leadership was lost seconds after it hung.
        check_restart {
          limit = 6
          grace = "30s"
        }
      }
    }

    dynamic "volume" {
      for_each = var.audit_volume == "" ? [] : [var.audit_volume]
      labels   = ["audit"]

      content {
        type   = "host"
        source = volume.value
      }
    }

    task "rebootd" {
      driver       = var.driver
      user         = var.user
      leader       = true
      kill_signal  = "SIGTERM"
      kill_timeout = "10s"

      # NOMAD_TOKEN: this job's own identity, for the Task API.
      identity {
        env = true
      }

      config {
        command = local.command
        args = concat(
          [
            "server",
            "--listen", "0.0.0.0:${NOMAD_PORT_http}",
            "--advertise", "${NOMAD_ADDR_http}",
            "--health", "127.0.0.1:${NOMAD_PORT_health}",
            "--node", "${attr.unique.consul.name}",
            "--service", var.service,
            "--prefix", var.prefix,
            "--log-level", var.log_level,
          ],
          flatten([for name, path in local.tls_files : ["--tls-${name}", path]]),
          local.token_file == "" ? [] : ["--token-file", local.token_file],
          var.audit_log == "" ? [] : ["--audit-log", var.audit_log],
          var.nomad_address == "" ? [] : ["--nomad", var.nomad_address],
          var.nomad_token_template == "" ? [] : ["--nomad-token-file", "${NOMAD_SECRETS_DIR}/nomad-token"],
          var.power_template == "" ? [] : ["--power-credentials", "${NOMAD_SECRETS_DIR}/power"],
        )
      }

      env {
        CONSUL_HTTP_ADDR       = var.consul_address
        CONSUL_HTTP_TOKEN_FILE = local.consul_token_file

        # Where the one file unpacks itself at its first start (57 MB): with the allocation, and gone with it.
        PEX_ROOT = "${NOMAD_TASK_DIR}/pex"
      }

      dynamic "volume_mount" {
        for_each = var.audit_volume == "" ? [] : [var.audit_volume]

        content {
          volume      = "audit"
          destination = "/audit"
        }
      }

      dynamic "artifact" {
        for_each = var.artifact == "" ? [] : [var.artifact]

        content {
          source      = var.artifact_checksum == "" ? artifact.value : "${artifact.value}?checksum=${var.artifact_checksum}"
          destination = "local/rebootd"
          mode        = "file"
        }
      }

      dynamic "template" {
        for_each = var.tls_templates

        content {
          data        = template.value
          destination = "secrets/tls-${template.key}.pem"
          perms       = "600"
          uid         = var.uid
          change_mode = "noop" # new certificates are taken within seconds, without a restart
        }
      }

      dynamic "template" {
        for_each = var.token_template == "" ? [] : [var.token_template]

        content {
          data        = template.value
          destination = "secrets/token"
          perms       = "600"
          uid         = var.uid
          change_mode = "restart"
        }
      }

      dynamic "template" {
        for_each = var.consul_token_template == "" ? [] : [var.consul_token_template]

        content {
          data        = template.value
          destination = "secrets/consul-token"
          perms       = "600"
          uid         = var.uid
          change_mode = "noop" # it is read again when Consul refuses the old one
        }
      }

      dynamic "template" {
        for_each = var.nomad_token_template == "" ? [] : [var.nomad_token_template]

        content {
          data        = template.value
          destination = "secrets/nomad-token"
          perms       = "600"
          uid         = var.uid
          change_mode = "noop" # it is read for every request
        }
      }

      dynamic "template" {
        for_each = var.power_template == "" ? [] : [var.power_template]

        content {
          data        = template.value
          destination = "secrets/power"
          perms       = "600"
          uid         = var.uid
          change_mode = "noop" # it is read before every power cycle
        }
      }

      resources {
        cpu    = var.cpu
        memory = var.memory
      }

      logs {
        max_files     = 5
        max_file_size = 20
      }
    }
  }
}
