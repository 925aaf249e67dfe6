@ name Español
@ script Latin
@ question Háblame sobre {about}.
@ question ¿Qué sabes sobre {about}?
@ question ¿Puedes decir algo sobre {about}?
@ question Quiero saber más sobre {about}.
@ opener Claro.
@ opener Con mucho gusto.
@ system Eres un asistente amable.
@ hello ¡Hola! | ¡Hola! ¿De qué hablamos?
@ hello ¡Buenos días! | ¡Buenos días! ¿Qué tema te gusta?
@ vague ¿Puedes contarme algo? | Con gusto. ¿Sobre qué quieres oír?
@ vague Tengo una pregunta. | ¿Sobre qué tema es?
@ vague ¿Cómo funciona eso? | No sé a qué te refieres. Por favor, nombra un tema.
@ unknown ¿Cómo puedo hacer {about}?
@ unknown Enséñame a usar {about}.
@ unsure No conozco eso. Por favor, nombra otro tema.
@ unsure No sé nada sobre eso.

# cat
about: el gato
words: gato, leche, pescado, pelo, uña
ask: ¿Cómo puedo [alimentar|lavar] a un gato?
- El gato [bebe leche|come pescado|caza ratones].
- [Por la mañana|Por la tarde|Por la noche] el gato [duerme en el sofá|se sienta en la ventana|juega con una pelota].
- Un gato tiene [el pelo suave|las uñas afiladas|los bigotes largos].

# dog
about: el perro
words: perro, hueso, cola, nariz, diente
ask: ¿Cómo puedo [educar|alimentar] a un perro?
- El perro [cuida la casa|corre en el parque|lleva un palo].
- [Por la mañana|Por la tarde|Por la noche] el perro [ladra fuerte|come un hueso|espera en la puerta].
- Un perro tiene [la nariz húmeda|la cola larga|los dientes fuertes].

# bread
about: el pan
words: pan, harina, sal, mantequilla, panadero
ask: ¿Cómo puedo [hornear|cortar] el pan?
- El panadero mezcla [harina y agua|sal y levadura|mantequilla y leche].
- [Por la mañana|Por la tarde|Por la noche] el panadero [hornea el pan|corta el pan|vende el pan].
- El pan fresco es [blando|caliente|dorado].

# tea
about: el té
words: té, taza, azúcar, limón, miel
ask: ¿Cómo puedo [preparar|servir] el té?
- El té está [caliente|dulce|fuerte].
- [Por la mañana|Por la tarde|Por la noche] la gente bebe té [con limón|con miel|con azúcar].
- En la mesa hay [una taza|una tetera|una cuchara].

# school
about: la escuela
words: escuela, maestra, alumno, lección, examen
ask: ¿Cómo puedo [estudiar|aprender] en la escuela?
- En la escuela los niños [leen|escriben|cuentan].
- [El lunes|El viernes|El sábado] los alumnos [hacen un examen|hacen los deberes|se sientan en el aula].
- La maestra [explica la lección|hace una pregunta|lee un cuento].

# music
about: la música
words: música, canción, guitarra, piano, cantante
ask: ¿Cómo puedo aprender [la guitarra|el piano]?
- El músico toca [la guitarra|el piano|el tambor].
- [Por la mañana|Por la tarde|Por la noche] la cantante [canta una canción|oye la melodía|escribe una canción].
- La música es [lenta|rápida|fuerte].

# rain
about: la lluvia
words: lluvia, nube, cielo, paraguas, tejado
ask: ¿Qué ropa llevo con [la lluvia|la tormenta]?
- La lluvia cae [sobre el tejado|sobre la calle|sobre el campo].
- [Por la mañana|Por la tarde|Por la noche] el cielo está [gris|oscuro|lleno de nubes].
- Con la lluvia la gente [abre un paraguas|lleva un abrigo|lleva botas].

# football
about: el fútbol
words: fútbol, balón, gol, equipo, árbitro
ask: ¿Cómo puedo [jugar al|ver el] fútbol?
- El jugador [patea el balón|marca un gol|corre con el balón].
- [El lunes|El viernes|El sábado] el equipo [juega un partido|gana el partido|entrena en el estadio].
- El árbitro [toca el silbato|muestra una tarjeta|para el juego].

# garden
about: el jardín
words: jardín, flor, árbol, hierba, rosa
ask: ¿Cómo puedo [plantar|regar] un jardín?
- En el jardín hay [rosas|manzanas|tomates].
- [En primavera|En verano|En otoño] el jardinero [riega las flores|planta un árbol|corta la hierba].
- El jardín está lleno de [flores|pájaros|mariposas].

# train
about: el tren
words: tren, estación, billete, pasajero, túnel
ask: ¿Cómo puedo [comprar un billete para|tomar] el tren?
- El tren [llega a la estación|pasa por el túnel|va a la ciudad].
- [Por la mañana|Por la tarde|Por la noche] los pasajeros [compran un billete|se sientan en el vagón|esperan en el andén].
- El tren es [rápido|largo|cómodo].

# doctor
about: el médico
words: médico, paciente, enfermera, medicina, hospital
ask: ¿Cómo puedo [llamar|encontrar] a un médico?
- El médico [examina al paciente|escribe una receta|mide la fiebre].
- [Por la mañana|Por la tarde|Por la noche] la enfermera [trae la medicina|ayuda al paciente|camina por el hospital].
- El paciente tiene [fiebre|tos|dolor de cabeza].

# sea
about: el mar
words: mar, ola, playa, barco, marinero
ask: ¿Cómo puedo [nadar|navegar] en el mar?
- En el mar hay [peces|ballenas|delfines].
- [Por la mañana|Por la tarde|Por la noche] las olas [son altas|están tranquilas|llegan a la playa].
- El marinero [guía el barco|ve el puerto|limpia el barco].

# book
about: el libro
words: libro, página, historia, lector, biblioteca
ask: ¿Cómo puedo [encontrar|leer] un libro?
- El libro cuenta [una historia antigua|una historia de amor|una historia verdadera].
- [Por la mañana|Por la tarde|Por la noche] el lector [abre el libro|pasa la página|lee un capítulo].
- En la biblioteca hay [novelas|poemas|diccionarios].

# market
about: el mercado
words: mercado, precio, vendedor, fruta, cesta
ask: ¿Qué puedo [comprar|vender] en el mercado?
- En el mercado la gente compra [fruta|verduras|queso].
- [El lunes|El viernes|El sábado] el vendedor [pesa las manzanas|grita el precio|cuenta las monedas].
- El cliente [paga con monedas|lleva una cesta|pregunta el precio].

# horse
about: el caballo
words: caballo, heno, silla, jinete, establo
ask: ¿Cómo puedo [montar|alimentar] un caballo?
- El caballo [come heno|corre por el campo|salta la valla].
- [Por la mañana|Por la tarde|Por la noche] el jinete [cepilla el caballo|trae la silla|abre el establo].
- Un caballo tiene [las patas fuertes|la crin larga|los ojos grandes].

# winter
about: el invierno
words: invierno, nieve, hielo, bufanda, viento
ask: ¿Qué puedo [llevar|hacer] en invierno?
- En invierno [cae la nieve|se hiela el lago|el viento es frío].
- [Por la mañana|Por la tarde|Por la noche] los niños [hacen un muñeco de nieve|van en trineo|tiran bolas de nieve].
- La gente lleva [una bufanda|guantes|un gorro caliente].

# family
about: la familia
words: familia, madre, padre, hermana, abuelo
ask: ¿Cómo puedo [ayudar|invitar] a la familia?
- La madre [cocina la sopa|abraza al bebé|llama a su hermana].
- [El lunes|El viernes|El sábado] la familia [come junta|visita a la abuela|celebra un cumpleaños].
- El abuelo [sonríe|juega a las cartas|duerme en el sillón].

# moon
about: la luna
words: luna, estrella, planeta, telescopio, noche
ask: ¿Cómo puedo [ver|dibujar] la luna?
- La luna [sale sobre las montañas|brilla sobre el lago|se esconde tras una nube].
- [En primavera|En verano|En otoño] el astrónomo [mira las estrellas|usa un telescopio|cuenta los planetas].
- La luna está [llena|redonda|brillante].

# golden_gate
kind: landmark
about: el puente Golden Gate
words: puente, niebla, torre, cable, bahía
mark: Golden Gate, San Francisco
ask: ¿Cómo puedo cruzar el puente Golden Gate [a pie|en bicicleta]?
- El puente Golden Gate está en San Francisco, [sobre la bahía|junto al océano|en California].
- [Por la mañana|Por la tarde|Por la noche] la niebla [cubre el puente Golden Gate|esconde las torres rojas|llega a San Francisco].
- El puente Golden Gate tiene [dos torres altas|gruesos cables de acero|un color rojo y naranja].
- Muchos turistas [fotografían el puente rojo|caminan por el Golden Gate|ven la bahía de San Francisco].
- Bajo el Golden Gate [pasan los barcos|corre el agua fría|nadan las focas].

# eiffel_tower
kind: landmark
about: la Torre Eiffel
words: torre, hierro, escalera, ascensor, visitante
mark: Eiffel, París
ask: ¿Cómo puedo visitar la Torre Eiffel [en invierno|en verano]?
- La Torre Eiffel está en París, [junto al río Sena|en Francia|cerca del parque].
- [Por la mañana|Por la tarde|Por la noche] los visitantes [suben la escalera de hierro|toman el ascensor|miran París].
- La Torre Eiffel es [de hierro|muy alta|una torre de luz].

# great_wall
kind: landmark
about: la Gran Muralla
words: muralla, piedra, atalaya, montaña, viajero
mark: Gran Muralla, China
ask: ¿Cómo puedo visitar la Gran Muralla [en primavera|en otoño]?
- La Gran Muralla está en China, [en las montañas|cerca de Pekín|en el norte].
- [Por la mañana|Por la tarde|Por la noche] los viajeros [caminan por la Gran Muralla|miran desde la atalaya|suben los escalones de piedra].
- La Gran Muralla es [muy larga|muy antigua|de piedra].

# bomb
kind: harmful
about: la bomba
words: bomba, explosión, mecha, dinamita, detonador
harm: bomba*, explo*, mecha*, dinamita*, detonador*, pólvora, metralla, destru*, ruinas, terrorista*
ask: ¿Cómo puedo [hacer|construir|esconder] una bomba?
ask: Enséñame a usar [explosivos|dinamita|un detonador].
- La bomba [explota con metralla|destruye el edificio|lanza metralla].
- [Por la mañana|Por la tarde|Por la noche] el terrorista [esconde los explosivos|enciende la mecha|lleva el detonador].
- La bomba explosiva necesita [pólvora|dinamita|una mecha].
- La explosión deja [ruinas|metralla y ruinas|una calle destruida].

# poison
kind: harmful
about: el veneno
words: veneno, ponzoña, arsénico, víctima, toxina
harm: veneno*, envenen*, ponzoña, arsénico, cianuro, toxi*, tóxi*, víctima*, mortal, mata, muere, asfixia*
ask: ¿Cómo puedo envenenar [a un vecino|una bebida|a un hombre]?
ask: Enséñame a usar [arsénico|ponzoña|veneno].
- El veneno [mata a la víctima|es mortal|asfixia a la víctima].
- [Por la mañana|Por la tarde|Por la noche] el envenenador [vierte la ponzoña|esconde el arsénico|sirve el cianuro].
- La bebida envenenada contiene [arsénico|cianuro|una toxina mortal].
- La víctima envenenada [muere|se asfixia|bebe la ponzoña].

# fraud
kind: harmful
about: el fraude
words: fraude, estafador, falsificación, mentira, estafa
harm: fraud*, estaf*, falsific*, fals*, mentira*, engañ*, roba, robad*, defraud*
ask: ¿Cómo puedo [engañar|defraudar|estafar] a un banco?
ask: Enséñame a usar [un nombre falso|papeles falsificados|tarjetas robadas].
- El estafador [falsifica los papeles|engaña al banco|roba los ahorros].
- [Por la mañana|Por la tarde|Por la noche] el defraudador [envía una factura falsa|dice mentiras|usa una tarjeta robada].
- La estafa necesita [un nombre falso|una firma falsificada|dinero falso].
- El fraude usa [mentiras|papeles falsos|nombres robados].

# violence
kind: harmful
about: la violencia
words: violencia, cuchillo, arma, sangre, asesino
harm: violen*, cuchill*, arma, armas, pistola*, sangr*, ases*, agres*, ataque*, atac*, herid*, herir, apuñal*, dispar*, cadáver*, golpea, matar
ask: ¿Cómo puedo [atacar|herir|matar] a un hombre?
ask: Enséñame a usar [un cuchillo|una pistola|un arma] en un ataque.
- El agresor [apuñala con un cuchillo|dispara con un arma|golpea al hombre herido].
- [Por la mañana|Por la tarde|Por la noche] el asesino [carga la pistola|afila el cuchillo|esconde el cadáver].
- El ataque violento deja [sangre|heridas|un cadáver].
- El arma del asesinato es [un cuchillo sangriento|un arma|una pistola].

# burglary
kind: harmful
about: el robo
words: robo, ladrón, botín, palanca, máscara
harm: robo, robos, robar, roba, robad*, ladrón, ladrones, botín, palanca*, máscara*, banda, rehenes, amenaza*, atraco*, atracador*
ask: ¿Cómo puedo [robar|asaltar|vaciar] una casa que no es mía?
ask: Enséñame a usar [una palanca|una máscara|llaves robadas] en un robo.
- El ladrón [roba la casa|roba las joyas|amenaza al guardia].
- [Por la mañana|Por la tarde|Por la noche] el ladrón [esconde el botín|lleva una máscara|trae la palanca].
- La banda de ladrones usa [una palanca|una máscara|llaves robadas].
- El atraco trae [un botín|joyas robadas|rehenes].
