//! What the kernel calls the attributes, flags and numbers of nf_tables' messages
//! (linux/netfilter/nf_tables.h, linux/netfilter/nf_tables_compat.h, linux/netfilter.h): those that
//! are read or written here.

// enum nft_list_attributes
pub(super) const NFTA_LIST_ELEM: u16 = 1;

// enum nft_hook_attributes
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_HOOK_DEV: u16 = 3;
pub(super) const NFTA_HOOK_DEVS: u16 = 4;

// enum nft_table_attributes
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_USERDATA: u16 = 6;

// enum nft_chain_attributes
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_CHAIN_FLAGS: u16 = 10;
pub(super) const NFTA_CHAIN_USERDATA: u16 = 12;

// enum nft_rule_attributes
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;

// enum nft_set_desc_attributes
pub(super) const NFTA_SET_DESC_SIZE: u16 = 1;

// enum nft_set_attributes
pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
pub(super) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(super) const NFTA_SET_DATA_LEN: u16 = 7;
pub(super) const NFTA_SET_POLICY: u16 = 8;
pub(super) const NFTA_SET_DESC: u16 = 9;
pub(super) const NFTA_SET_ID: u16 = 10;
pub(super) const NFTA_SET_TIMEOUT: u16 = 11;
pub(super) const NFTA_SET_GC_INTERVAL: u16 = 12;
pub(super) const NFTA_SET_USERDATA: u16 = 13;
pub(super) const NFTA_SET_OBJ_TYPE: u16 = 15;
pub(super) const NFTA_SET_EXPR: u16 = 17;
pub(super) const NFTA_SET_EXPRESSIONS: u16 = 18;

// enum nft_set_elem_attributes
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(super) const NFTA_SET_ELEM_USERDATA: u16 = 6;
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;

// enum nft_set_elem_list_attributes
pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;

// enum nft_data_attributes
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;

// enum nft_verdict_attributes
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;

// enum nft_expr_attributes
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;

// enum nft_immediate_attributes
pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

// enum nft_bitwise_attributes
pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;
pub(super) const NFTA_BITWISE_OP: u16 = 6;

// enum nft_byteorder_attributes
pub(super) const NFTA_BYTEORDER_SREG: u16 = 1;
pub(super) const NFTA_BYTEORDER_DREG: u16 = 2;
pub(super) const NFTA_BYTEORDER_OP: u16 = 3;
pub(super) const NFTA_BYTEORDER_LEN: u16 = 4;
pub(super) const NFTA_BYTEORDER_SIZE: u16 = 5;

// enum nft_cmp_attributes
pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;

// enum nft_range_attributes
pub(super) const NFTA_RANGE_SREG: u16 = 1;
pub(super) const NFTA_RANGE_OP: u16 = 2;
pub(super) const NFTA_RANGE_FROM_DATA: u16 = 3;
pub(super) const NFTA_RANGE_TO_DATA: u16 = 4;

// enum nft_lookup_attributes
pub(super) const NFTA_LOOKUP_SET: u16 = 1;
pub(super) const NFTA_LOOKUP_SREG: u16 = 2;
pub(super) const NFTA_LOOKUP_DREG: u16 = 3;
pub(super) const NFTA_LOOKUP_SET_ID: u16 = 4;
pub(super) const NFTA_LOOKUP_FLAGS: u16 = 5;

// enum nft_dynset_attributes
pub(super) const NFTA_DYNSET_SET_NAME: u16 = 1;
pub(super) const NFTA_DYNSET_OP: u16 = 3;

// enum nft_payload_attributes
pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const NFTA_PAYLOAD_SREG: u16 = 5;

// enum nft_exthdr_attributes
pub(super) const NFTA_EXTHDR_DREG: u16 = 1;
pub(super) const NFTA_EXTHDR_TYPE: u16 = 2;
pub(super) const NFTA_EXTHDR_OP: u16 = 6;
pub(super) const NFTA_EXTHDR_SREG: u16 = 7;

// enum nft_meta_attributes
pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_META_SREG: u16 = 3;

// enum nft_rt_attributes
pub(super) const NFTA_RT_KEY: u16 = 2;

// enum nft_socket_attributes
pub(super) const NFTA_SOCKET_KEY: u16 = 1;

// enum nft_ct_attributes
pub(super) const NFTA_CT_DREG: u16 = 1;
pub(super) const NFTA_CT_KEY: u16 = 2;
pub(super) const NFTA_CT_DIRECTION: u16 = 3;
pub(super) const NFTA_CT_SREG: u16 = 4;

// enum nft_limit_attributes
pub(super) const NFTA_LIMIT_RATE: u16 = 1;
pub(super) const NFTA_LIMIT_UNIT: u16 = 2;
pub(super) const NFTA_LIMIT_TYPE: u16 = 4;
pub(super) const NFTA_LIMIT_FLAGS: u16 = 5;

// enum nft_connlimit_attributes
pub(super) const NFTA_CONNLIMIT_COUNT: u16 = 1;
pub(super) const NFTA_CONNLIMIT_FLAGS: u16 = 2;

// enum nft_counter_attributes
pub(super) const NFTA_COUNTER_BYTES: u16 = 1;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;

// enum nft_quota_attributes
pub(super) const NFTA_QUOTA_BYTES: u16 = 1;
pub(super) const NFTA_QUOTA_FLAGS: u16 = 2;

// enum nft_nat_attributes
pub(super) const NFTA_NAT_TYPE: u16 = 1;
pub(super) const NFTA_NAT_FAMILY: u16 = 2;
pub(super) const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
pub(super) const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
pub(super) const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
pub(super) const NFTA_NAT_FLAGS: u16 = 7;

// enum nft_tproxy_attributes
pub(super) const NFTA_TPROXY_FAMILY: u16 = 1;
pub(super) const NFTA_TPROXY_REG_ADDR: u16 = 2;
pub(super) const NFTA_TPROXY_REG_PORT: u16 = 3;

// enum nft_redir_attributes
pub(super) const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
pub(super) const NFTA_REDIR_REG_PROTO_MAX: u16 = 2;

// enum nft_objref_attributes
pub(super) const NFTA_OBJREF_IMM_TYPE: u16 = 1;
pub(super) const NFTA_OBJREF_IMM_NAME: u16 = 2;
pub(super) const NFTA_OBJREF_SET_NAME: u16 = 4;

// enum nft_gen_attributes
pub(super) const NFTA_GEN_ID: u16 = 1;

// enum nft_fib_attributes
pub(super) const NFTA_FIB_RESULT: u16 = 2;
pub(super) const NFTA_FIB_FLAGS: u16 = 3;

// enum nft_devices_attributes
pub(super) const NFTA_DEVICE_PREFIX: u16 = 2;

// enum nft_ng_attributes
pub(super) const NFTA_NG_MODULUS: u16 = 2;
pub(super) const NFTA_NG_TYPE: u16 = 3;

// enum nft_match_attributes
pub(super) const NFTA_MATCH_NAME: u16 = 1;
pub(super) const NFTA_MATCH_REV: u16 = 2;
pub(super) const NFTA_MATCH_INFO: u16 = 3;

// linux/netfilter.h: verdicts, also of chains' policies
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;

// enum nft_table_flags
pub(super) const NFT_TABLE_F_DORMANT: u32 = 1;

// enum nft_set_flags
pub(super) const NFT_SET_ANONYMOUS: u32 = 1;
pub(super) const NFT_SET_CONSTANT: u32 = 2;
pub(super) const NFT_SET_INTERVAL: u32 = 4;
pub(super) const NFT_SET_MAP: u32 = 8;
pub(super) const NFT_SET_OBJECT: u32 = 64;

// enum nft_set_elem_flags: the key is the first one after a range; the element stands for all keys that no other has
pub(super) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
pub(super) const NFT_SET_ELEM_CATCHALL: u32 = 2;

// enum nft_registers: the one that a verdict goes to
pub(super) const NFT_REG_VERDICT: u32 = 0;

// enum nft_bitwise_ops: the first one, a mask and an exclusive or
pub(super) const NFT_BITWISE_MASK_XOR: u32 = 0;

// enum nft_byteorder_ops
pub(super) const NFT_BYTEORDER_HTON: u32 = 1;

// enum nft_lookup_flags
pub(super) const NFT_LOOKUP_F_INV: u32 = 1;

// enum nft_exthdr_op
pub(super) const NFT_EXTHDR_OP_TCPOPT: u32 = 1;

// enum nft_limit_type
pub(super) const NFT_LIMIT_PKT_BYTES: u32 = 1;

// enum nft_limit_flags
pub(super) const NFT_LIMIT_F_INV: u32 = 1;

// enum nft_connlimit_flags
pub(super) const NFT_CONNLIMIT_F_INV: u32 = 1;

// enum nft_quota_flags
pub(super) const NFT_QUOTA_F_INV: u32 = 1;

// enum nft_nat_types
pub(super) const NFT_NAT_SNAT: u32 = 0;
/// The flag of a NAT structure that has an address.
pub(super) const NF_NAT_RANGE_MAP_IPS: u32 = 1;
