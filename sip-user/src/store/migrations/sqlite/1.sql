CREATE TABLE IF NOT EXISTS users (
    username TEXT NOT NULL,
    domain TEXT NOT NULL,
    ha1 TEXT NOT NULL,
    ha1_sha256 TEXT NOT NULL,
    PRIMARY KEY (username, domain)
);
CREATE TABLE IF NOT EXISTS location (
    id TEXT NOT NULL PRIMARY KEY,
    username TEXT NOT NULL,
    domain TEXT NOT NULL,
    contact TEXT NOT NULL,
    received TEXT,
    local_address TEXT NOT NULL,
    path TEXT,
    q INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    call_id TEXT NOT NULL,
    cseq INTEGER NOT NULL,
    user_agent TEXT NOT NULL,
    instance TEXT,
    reg_id INTEGER,
    methods INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS location_user ON location (username, domain);
CREATE INDEX IF NOT EXISTS location_expires_at ON location (expires_at);
CREATE TABLE IF NOT EXISTS cdr (
    id_ha INTEGER PRIMARY KEY AUTOINCREMENT,
    calldate TEXT NOT NULL,
    clid TEXT NOT NULL DEFAULT '',
    src TEXT NOT NULL DEFAULT '',
    dst TEXT NOT NULL DEFAULT '',
    dcontext TEXT NOT NULL DEFAULT '',
    channel TEXT NOT NULL DEFAULT '',
    dstchannel TEXT NOT NULL DEFAULT '',
    lastapp TEXT NOT NULL DEFAULT '',
    lastdata TEXT NOT NULL DEFAULT '',
    duration INTEGER NOT NULL DEFAULT 0,
    billsec INTEGER NOT NULL DEFAULT 0,
    disposition TEXT NOT NULL DEFAULT '',
    amaflags INTEGER NOT NULL DEFAULT 0,
    accountcode TEXT NOT NULL DEFAULT '',
    uniqueid TEXT NOT NULL UNIQUE,
    userfield TEXT NOT NULL DEFAULT '',
    answerdate TEXT,
    enddate TEXT NOT NULL,
    call_id TEXT NOT NULL DEFAULT '',
    sip_code INTEGER NOT NULL DEFAULT 0,
    ending TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS cdr_calldate ON cdr (calldate);
CREATE INDEX IF NOT EXISTS cdr_src ON cdr (src);
CREATE INDEX IF NOT EXISTS cdr_dst ON cdr (dst);
