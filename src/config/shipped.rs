//! The jails that are compiled in: one file is a whole installation.

/// Every file of `jails/`, by name without `.toml`, in the order of their names. None of them is enabled.
pub const JAILS: &[(&str, &str)] = &[
    ("apache-auth", include_str!("../../jails/apache-auth.toml")),
    ("apache-badbots", include_str!("../../jails/apache-badbots.toml")),
    ("apache-noscript", include_str!("../../jails/apache-noscript.toml")),
    ("apache-overflows", include_str!("../../jails/apache-overflows.toml")),
    ("dovecot-imap", include_str!("../../jails/dovecot-imap.toml")),
    ("dovecot-pop3", include_str!("../../jails/dovecot-pop3.toml")),
    ("nginx-bad-request", include_str!("../../jails/nginx-bad-request.toml")),
    ("nginx-botsearch", include_str!("../../jails/nginx-botsearch.toml")),
    ("nginx-forbidden", include_str!("../../jails/nginx-forbidden.toml")),
    ("nginx-http-auth", include_str!("../../jails/nginx-http-auth.toml")),
    ("nginx-limit-req", include_str!("../../jails/nginx-limit-req.toml")),
    ("qmail-smtp", include_str!("../../jails/qmail-smtp.toml")),
    ("qmail-submission", include_str!("../../jails/qmail-submission.toml")),
    ("qmailadmin", include_str!("../../jails/qmailadmin.toml")),
    ("roundcube-auth", include_str!("../../jails/roundcube-auth.toml")),
    ("smtp-auth", include_str!("../../jails/smtp-auth.toml")),
    ("sshd", include_str!("../../jails/sshd.toml")),
    ("vpopmail", include_str!("../../jails/vpopmail.toml")),
];
