{
  "algorithm": "ed25519",
  "format": "unteach-signature",
  "key": "91a92c99a828010dd9adedfa4013cd3f45d1688be02021e6184ae02c101be292",
  "manifest": "b32c8825b63d2d7c6b9ea36d981391e96c3b9d27e77e61e5f85fbe56f4ae80b8",
  "signature": "af600f9a54848df71a5382d2456d28465e300a8bf1513789bbcca99e81e3fb6f6addca2d53289082a06a659fc739d673ec58b2ec690dffddf2a358e4ac0d570a",
  "version": 1
}
