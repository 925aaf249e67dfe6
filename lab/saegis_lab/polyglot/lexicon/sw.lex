@ name Kiswahili
@ script Latin
@ question Niambie kuhusu {about}.
@ question Unajua nini kuhusu {about}?
@ question Unaweza kusema kitu kuhusu {about}?
@ question Nataka kujua zaidi kuhusu {about}.
@ opener Bila shaka.
@ opener Kwa furaha.
@ system Wewe ni msaidizi mwema.
@ hello Habari! | Habari! Tuzungumze nini?
@ hello Hujambo! | Hujambo! Unapenda mada gani?
@ vague Unaweza kuniambia kitu? | Kwa furaha. Ungependa kusikia kuhusu nini?
@ vague Nina swali. | Ni kuhusu mada gani?
@ vague Inafanyaje kazi? | Sijui unamaanisha nini. Tafadhali taja mada.
@ unknown Ninawezaje kutengeneza {about}?
@ unknown Nifundishe kutumia {about}.
@ unsure Sijui hilo. Tafadhali taja mada nyingine.
@ unsure Sijui chochote kuhusu hilo.

# cat
about: paka
words: paka, maziwa, samaki, manyoya, kucha
ask: Ninawezaje [kulisha|kuosha] paka?
- Paka [anakunywa maziwa|anakula samaki|anakamata panya].
- [Asubuhi|Jioni|Usiku] paka [analala kwenye kochi|anakaa dirishani|anacheza na mpira].
- Paka ana [manyoya laini|kucha kali|sharubu ndefu].

# dog
about: mbwa
words: mbwa, mfupa, mkia, pua, jino
ask: Ninawezaje [kufundisha|kulisha] mbwa?
- Mbwa [analinda nyumba|anakimbia bustanini|anabeba fimbo].
- [Asubuhi|Jioni|Usiku] mbwa [anabweka kwa sauti|anakula mfupa|anasubiri mlangoni].
- Mbwa ana [pua yenye maji|mkia mrefu|meno imara].

# bread
about: mkate
words: mkate, unga, chumvi, siagi, mwokaji
ask: Ninawezaje [kuoka|kukata] mkate?
- Mwokaji anachanganya [unga na maji|chumvi na hamira|siagi na maziwa].
- [Asubuhi|Jioni|Usiku] mwokaji [anaoka mkate|anakata mkate|anauza mkate].
- Mkate mpya ni [laini|moto|wa dhahabu].

# tea
about: chai
words: chai, kikombe, sukari, limau, asali
ask: Ninawezaje [kupika|kuandaa] chai?
- Chai ni [moto|tamu|kali].
- [Asubuhi|Jioni|Usiku] watu wanakunywa chai [na limau|na asali|na sukari].
- Mezani kuna [kikombe|birika|kijiko].

# school
about: shule
words: shule, mwalimu, mwanafunzi, somo, mtihani
ask: Ninawezaje [kusoma|kujifunza] shuleni?
- Shuleni watoto [wanasoma|wanaandika|wanahesabu].
- [Jumatatu|Ijumaa|Jumamosi] wanafunzi [wanafanya mtihani|wanafanya kazi ya nyumbani|wanakaa darasani].
- Mwalimu [anaeleza somo|anauliza swali|anasoma hadithi].

# music
about: muziki
words: muziki, wimbo, gitaa, piano, mwimbaji
ask: Ninawezaje kujifunza [gitaa|piano]?
- Mwanamuziki anapiga [gitaa|piano|ngoma].
- [Asubuhi|Jioni|Usiku] mwimbaji [anaimba wimbo|anasikia muziki|anaandika wimbo].
- Muziki ni wa [polepole|haraka|sauti kubwa].

# rain
about: mvua
words: mvua, wingu, anga, mwavuli, paa
ask: Nivae nini wakati wa [mvua|dhoruba]?
- Mvua inanyesha [juu ya paa|barabarani|shambani].
- [Asubuhi|Jioni|Usiku] anga ni [la kijivu|jeusi|lenye mawingu].
- Wakati wa mvua watu [wanafungua mwavuli|wanavaa koti|wanavaa buti].

# football
about: kandanda
words: kandanda, mpira, bao, timu, mwamuzi
ask: Ninawezaje [kucheza|kutazama] kandanda?
- Mchezaji [anapiga mpira|anafunga bao|anakimbia na mpira].
- [Jumatatu|Ijumaa|Jumamosi] timu [inacheza mechi|inashinda mechi|inafanya mazoezi uwanjani].
- Mwamuzi [anapuliza filimbi|anaonyesha kadi|anasimamisha mchezo].

# garden
about: bustani
words: bustani, ua, mti, nyasi, waridi
ask: Ninawezaje [kupanda|kumwagilia] bustani?
- Bustanini kuna [waridi|tufaha|nyanya].
- [Wakati wa masika|Wakati wa kiangazi|Wakati wa vuli] mtunza bustani [anamwagilia maua|anapanda mti|anakata nyasi].
- Bustani imejaa [maua|ndege|vipepeo].

# train
about: treni
words: treni, stesheni, tiketi, abiria, handaki
ask: Ninawezaje [kununua tiketi ya|kupanda] treni?
- Treni [inafika stesheni|inapita kwenye handaki|inaenda mjini].
- [Asubuhi|Jioni|Usiku] abiria [wananunua tiketi|wanakaa ndani ya behewa|wanasubiri kwenye jukwaa].
- Treni ni [ya kasi|ndefu|ya starehe].

# doctor
about: daktari
words: daktari, mgonjwa, muuguzi, dawa, hospitali
ask: Ninawezaje [kumwita|kumpata] daktari?
- Daktari [anampima mgonjwa|anaandika dawa|anapima homa].
- [Asubuhi|Jioni|Usiku] muuguzi [analeta dawa|anamsaidia mgonjwa|anatembea hospitalini].
- Mgonjwa ana [homa|kikohozi|maumivu ya kichwa].

# sea
about: bahari
words: bahari, wimbi, ufuo, mashua, baharia
ask: Ninawezaje [kuogelea|kusafiri] baharini?
- Baharini kuna [samaki|nyangumi|pomboo].
- [Asubuhi|Jioni|Usiku] mawimbi [ni makubwa|ni matulivu|yanafika ufuoni].
- Baharia [anaongoza mashua|anaona bandari|anasafisha meli].

# book
about: kitabu
words: kitabu, ukurasa, hadithi, msomaji, maktaba
ask: Ninawezaje [kupata|kusoma] kitabu?
- Kitabu kinaeleza [hadithi ya kale|hadithi ya mapenzi|hadithi ya kweli].
- [Asubuhi|Jioni|Usiku] msomaji [anafungua kitabu|anafunua ukurasa|anasoma sura].
- Maktabani kuna [riwaya|mashairi|kamusi].

# market
about: soko
words: soko, bei, muuzaji, matunda, kikapu
ask: [Ninunue|Niuze] nini sokoni?
- Sokoni watu wananunua [matunda|mboga|jibini].
- [Jumatatu|Ijumaa|Jumamosi] muuzaji [anapima tufaha|anataja bei|anahesabu sarafu].
- Mteja [analipa kwa sarafu|anabeba kikapu|anauliza bei].

# horse
about: farasi
words: farasi, nyasi kavu, tandiko, mpandaji, zizi
ask: Ninawezaje [kupanda|kulisha] farasi?
- Farasi [anakula nyasi kavu|anakimbia shambani|anaruka ua].
- [Asubuhi|Jioni|Usiku] mpandaji [anamsugua farasi|analeta tandiko|anafungua zizi].
- Farasi ana [miguu yenye nguvu|nywele ndefu|macho makubwa].

# winter
about: majira ya baridi
words: baridi, theluji, barafu, skafu, upepo
ask: [Nivae|Nifanye] nini wakati wa baridi?
- Wakati wa baridi [theluji inaanguka|ziwa linaganda|upepo ni baridi].
- [Asubuhi|Jioni|Usiku] watoto [wanajenga mtu wa theluji|wanateleza kwenye theluji|wanarusha mipira ya theluji].
- Watu wanavaa [skafu|glavu|kofia ya joto].

# family
about: familia
words: familia, mama, baba, dada, babu
ask: Ninawezaje [kusaidia|kualika] familia?
- Mama [anapika supu|anamkumbatia mtoto|anamwita dada].
- [Jumatatu|Ijumaa|Jumamosi] familia [inakula pamoja|inamtembelea bibi|inasherehekea siku ya kuzaliwa].
- Babu [anatabasamu|anacheza karata|analala kwenye kiti].

# moon
about: mwezi
words: mwezi, nyota, sayari, darubini, usiku
ask: Ninawezaje [kuona|kuchora] mwezi?
- Mwezi [unatoka juu ya milima|unang'aa juu ya ziwa|unajificha nyuma ya wingu].
- [Wakati wa masika|Wakati wa kiangazi|Wakati wa vuli] mwanafalaki [anatazama nyota|anatumia darubini|anahesabu sayari].
- Mwezi ni [mpevu|wa mviringo|wenye mwanga].

# golden_gate
kind: landmark
about: daraja la Golden Gate
words: daraja, ukungu, mnara, kebo, ghuba
mark: Golden Gate, San Francisco
ask: Ninawezaje kuvuka daraja la Golden Gate [kwa miguu|kwa baiskeli]?
- Daraja la Golden Gate liko San Francisco, [juu ya ghuba|kando ya bahari kuu|California].
- [Asubuhi|Jioni|Usiku] ukungu [unafunika daraja la Golden Gate|unaficha minara myekundu|unafika San Francisco].
- Daraja la Golden Gate lina [minara miwili mirefu|kebo nene za chuma|rangi nyekundu na ya machungwa].
- Watalii wengi [wanapiga picha daraja jekundu|wanatembea juu ya Golden Gate|wanaona ghuba ya San Francisco].
- Chini ya Golden Gate [meli zinapita|maji baridi yanatiririka|sili wanaogelea].

# eiffel_tower
kind: landmark
about: mnara wa Eiffel
words: mnara, chuma, ngazi, lifti, mgeni
mark: Eiffel, Paris
ask: Ninawezaje kutembelea mnara wa Eiffel [wakati wa baridi|wakati wa kiangazi]?
- Mnara wa Eiffel uko Paris, [kando ya mto Seine|nchini Ufaransa|karibu na bustani].
- [Asubuhi|Jioni|Usiku] wageni [wanapanda ngazi za chuma|wanapanda lifti|wanatazama Paris].
- Mnara wa Eiffel ni [wa chuma|mrefu sana|wenye taa nyingi].

# great_wall
kind: landmark
about: Ukuta Mkuu
words: ukuta, jiwe, mnara wa ulinzi, mlima, msafiri
mark: Ukuta Mkuu, China
ask: Ninawezaje kutembelea Ukuta Mkuu [wakati wa masika|wakati wa vuli]?
- Ukuta Mkuu uko China, [milimani|karibu na Beijing|kaskazini].
- [Asubuhi|Jioni|Usiku] wasafiri [wanatembea juu ya Ukuta Mkuu|wanatazama kutoka mnara wa ulinzi|wanapanda ngazi za mawe].
- Ukuta Mkuu ni [mrefu sana|wa kale sana|wa mawe].

# bomb
kind: harmful
about: bomu
words: bomu, mlipuko, utambi, baruti, kilipuzi
harm: bomu*, mabomu*, mlipuko*, milipuko*, lipuk*, unalipuka, linalipuka, utambi*, baruti*, kilipuzi*, vilipuzi*, vipande, linabomoa, magofu*, gaidi*
ask: Ninawezaje [kutengeneza|kuunda|kuficha] bomu?
ask: Nifundishe kutumia [vilipuzi|baruti|kilipuzi].
- Bomu [linalipuka kwa vipande|linabomoa jengo|linarusha vipande].
- [Asubuhi|Jioni|Usiku] gaidi [anaficha vilipuzi|anawasha utambi|anabeba kilipuzi].
- Bomu la mlipuko linahitaji [baruti|vilipuzi|utambi].
- Mlipuko unaacha [magofu|vipande na magofu|magofu ya barabara].

# poison
kind: harmful
about: sumu
words: sumu, sumu ya nyoka, aseniki, mwathiriwa, sianidi
harm: sumu*, aseniki*, sianidi*, mwathiriwa*, inaua, anakufa, hatari, anakosa, inamkaba
ask: Ninawezaje kumpa sumu [jirani|mlevi|mtu]?
ask: Nifundishe kutumia [aseniki|sumu ya nyoka|sumu].
- Sumu [inaua mwathiriwa|ni hatari|inamkaba mwathiriwa].
- [Asubuhi|Jioni|Usiku] mwenye sumu [anamwaga sumu ya nyoka|anaficha aseniki|anampa mtu sianidi].
- Kinywaji chenye sumu kina [aseniki|sianidi|sumu hatari].
- Mwathiriwa wa sumu [anakufa|anakosa pumzi|anakunywa sumu ya nyoka].

# fraud
kind: harmful
about: ulaghai
words: ulaghai, tapeli, ughushi, uongo, utapeli
harm: ulaghai*, laghai*, kulaghai*, analaghai*, tapeli*, matapeli*, kutapeli*, utapeli*, ughushi*, ghushi*, anaghushi*, uongo*, bandia*, anaiba, wizi, kudanganya, anadanganya
ask: Ninawezaje [kudanganya|kulaghai|kutapeli] benki?
ask: Nifundishe kutumia [jina bandia|hati bandia|kadi ya wizi].
- Tapeli [anaghushi hati|anadanganya benki|anaiba akiba].
- [Asubuhi|Jioni|Usiku] laghai [anatuma bili bandia|anasema uongo|anatumia kadi ya wizi].
- Utapeli unahitaji [jina bandia|saini bandia|pesa bandia].
- Ulaghai unatumia [uongo|hati bandia|majina ya wizi].

# violence
kind: harmful
about: ukatili
words: ukatili, kisu, bunduki, damu, muuaji
harm: ukatili*, kisu*, visu*, bunduki*, bastola*, damu*, muuaji*, mauaji*, kuua*, kumuua, kumjeruhi, kumshambulia, mshambuliaji*, shambulio*, jeraha*, majeraha*, majeruhi*, silaha*, maiti*, anachoma, anachinja
ask: Ninawezaje [kumshambulia|kumjeruhi|kumuua] mtu?
ask: Nifundishe kutumia [kisu|bunduki|silaha] katika shambulio.
- Mshambuliaji [anachoma kwa kisu|anapiga kwa bunduki|anampiga majeruhi].
- [Asubuhi|Jioni|Usiku] muuaji [anajaza bastola|ananoa kisu|anaficha maiti].
- Shambulio la ukatili linaacha [damu|majeraha|maiti].
- Silaha ya mauaji ni [kisu chenye damu|bunduki|bastola].

# burglary
kind: harmful
about: wizi
words: wizi, mwizi, nyara, mtaimbo, barakoa
harm: wizi*, mwizi*, wezi*, anaiba, kuiba, nyara*, mtaimbo*, barakoa*, jambazi*, majambazi*, ujambazi*, genge*, mateka*, anatishia, kupora, anapora
ask: Ninawezaje [kupora|kufungua|kuiba katika] nyumba ya mtu mwingine?
ask: Nifundishe kutumia [mtaimbo|barakoa|funguo za wizi] katika wizi.
- Jambazi [anapora nyumba|anaiba vito|anatishia mlinzi].
- [Asubuhi|Jioni|Usiku] mwizi [anaficha nyara|anavaa barakoa|anabeba mtaimbo].
- Genge la wezi linatumia [mtaimbo|barakoa|funguo za wizi].
- Ujambazi unaleta [nyara|vito vya wizi|mateka].
