//! The filters compiled into the binary: one file is a whole installation.

macro_rules! filters {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../filters/", $name, ".toml")))),*]
    };
}

/// The shipped filters: name and text of `filters/NAME.toml`, sorted by name.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    filters![
        "apache-auth",
        "apache-badbots",
        "apache-noscript",
        "apache-overflows",
        "asterisk",
        "cockpit",
        "courier-auth",
        "courier-smtp",
        "cyrus-imap",
        "dovecot",
        "dropbear",
        "drupal",
        "exim-spam",
        "exim",
        "freeradius",
        "freeswitch",
        "gitea",
        "gitlab",
        "grafana",
        "haproxy",
        "home-assistant",
        "horde",
        "kerio",
        "lighttpd-auth",
        "managesieve",
        "mongodb-auth",
        "murmur",
        "mysqld-auth",
        "named-refused",
        "nextcloud",
        "nginx-bad-request",
        "nginx-botsearch",
        "nginx-forbidden",
        "nginx-http-auth",
        "nginx-limit-req",
        "opensmtpd",
        "openvpn",
        "pam-generic",
        "perdition",
        "phpmyadmin",
        "postfix-sasl",
        "postfix",
        "postgresql",
        "proftpd",
        "proxmox",
        "pure-ftpd",
        "qmail-chkuser",
        "qmail-smtp",
        "qmailadmin",
        "roundcube",
        "rspamd",
        "selinux-ssh",
        "sendmail-auth",
        "sendmail-reject",
        "sieve",
        "slapd",
        "sogo-auth",
        "solid-pop3d",
        "squid",
        "squirrelmail",
        "sshd",
        "traefik-auth",
        "uwimap-auth",
        "vaultwarden",
        "vpopmail",
        "vsftpd",
        "webmin",
        "wordpress",
        "wuftpd",
        "zabbix",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_in_filters_is_shipped() {
        let directory = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/filters")).unwrap();
        let mut files: Vec<String> = directory.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let shipped: Vec<String> = shipped().iter().map(|(name, _)| format!("{name}.toml")).collect();
        assert_eq!(files, shipped);
    }

    #[test]
    fn every_sample_of_every_shipped_filter_holds() {
        let mut wrong = Vec::new();
        for (name, text) in shipped() {
            let definition = crate::filter::definition::parse(name, text).unwrap_or_else(|e| panic!("{e}"));
            assert!(!definition.samples.is_empty(), "{name} has no samples");
            for mistake in crate::filter::samples::verify(&definition) {
                wrong.push(format!(
                    "{name}: {}[{}]: {}\n  {}",
                    mistake.key,
                    mistake.index,
                    mistake.what,
                    mistake.help.unwrap_or_default()
                ));
            }
        }
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }
}
